// What the tests set: the emulator's scheduling, and the fault that they must notice.
#include "emu/emu.hpp"
#include "emulated.hpp"

EMU_EXPORT void emu_set_order(int order) { emu::policy().order = order; }
EMU_EXPORT void emu_drop_barriers(int drop) { emu::policy().drop_barriers = drop != 0; }
EMU_EXPORT int64_t emu_launches() { return emu::policy().launches; }
