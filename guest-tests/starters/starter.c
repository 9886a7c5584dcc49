/* NAME: write here what the guest shows, and which rule it pins down.

   It starts at ring 3 in long mode. All memory is mapped one to one, and the stack is ready. There is no C library:
   guest.h has what there is. */
#include "guest.h"
MANIFEST("NAME.toml");

#define BANK 0x4000000          /* the region of the manifest */

uint8_t test(uint64_t processor) {
    (void)processor;            /* the first has number 0 */
    for (uint64_t page = 0; page < 16; page++)
        *word(BANK + page * PAGE) = BANK + page * PAGE;
    ring(1);                    /* the host does the steps of bell 1, and looks */
    for (uint64_t page = 0; page < 4; page++)
        if (*word(BANK + page * PAGE) != 0)
            return 2;           /* the run ends with code 2 */
    for (uint64_t page = 4; page < 16; page++)
        if (*word(BANK + page * PAGE) != BANK + page * PAGE)
            return 3;
    return PASS;
}
