/* A guest in C: 16 pages are written, and found through an alias; the host moves them to other frames in between. */
#include "guest.h"
MANIFEST("in_c.toml");

#define BANK 0x4000000
#define ALIAS 0x5000000
#define BYTES (16 * PAGE)

uint8_t test(uint64_t processor) {
    (void)processor;
    for (uint64_t page = 0; page < BYTES; page += PAGE)
        *word(BANK + page) = BANK + page;
    ring(1);
    for (uint64_t page = 0; page < BYTES; page += PAGE)
        if (*word(ALIAS + page) != BANK + page)
            return 1;
    print("16 pages found\n");
    return PASS;
}
