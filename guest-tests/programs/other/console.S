# Words on the console from ring 3: byte by byte, and as one string instruction.
# Pins down: IOPL 3 allows ports at ring 3 (SDM vol. 1, 19.5.1); OUTS is an exit with all its bytes.
.include "guest.inc"
manifest "console.toml"

.global start
start:
    lea rsi, [rip + bytes]
    mov ecx, offset bytes_length
    mov dx, PORT_CONSOLE
1:  lodsb
    out dx, al
    dec ecx
    jnz 1b

    lea rsi, [rip + string]
    mov ecx, offset string_length
    rep outsb
    finish PASS

.data
bytes: .ascii "hello "
.set bytes_length, . - bytes
string: .ascii "from ring 3\n"
.set string_length, . - string
