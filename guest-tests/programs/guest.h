/* What a guest in C begins with: the ports of the host, the manifest, and the way in. It has to define `test`. */
#pragma once
#include <stdint.h>

#define PASS 0x10               /* what `test` returns if all is well; another number says what is not */
#define PAGE 0x1000

/* The manifest of this program: MANIFEST("name.toml"); */
#define MANIFEST(file) \
    __asm__(".pushsection .memvirt, \"\", @progbits\n\t.incbin \"" file "\"\n\t.popsection")

/* Starts with the number of the processor; what it returns ends the run. */
uint8_t test(uint64_t processor);

__asm__(".pushsection .text\n\t.globl start\nstart:\n\tcall test\n\toutb %al, $0xf4\n1:\tjmp 1b\n\t.popsection");

static inline void out_byte(uint16_t port, uint8_t value) {
    __asm__ volatile("outb %0, %1" : : "a"(value), "Nd"(port) : "memory");
}

/* Have the host do the steps of the manifest for this bell. */
static inline void ring(uint8_t bell) {
    out_byte(0xf8, bell);
}

/* Write to the console. */
static inline void print(const char *text) {
    while (*text)
        out_byte(0x3f8, *text++);
}

/* The word at an address, as the processor finds it just now. */
static inline volatile uint64_t *word(uint64_t address) {
    return (volatile uint64_t *)address;
}
