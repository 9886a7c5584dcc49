//! What a guest in Rust begins with: the ports of the host, the manifest, and the way in.
//!
//! A guest is `#![no_std]` and `#![no_main]`, names its manifest by [`manifest!`] and its test by [`test!`].
#![no_std]

use core::arch::asm;
use core::fmt::{self, Write};
use core::panic::PanicInfo;

/// What a test returns if all is well; another number says what is not.
pub const PASS: u8 = 0x10;
/// Bytes of a page.
pub const PAGE: u64 = 0x1000;

/// The manifest of this program: `manifest!("name.toml");`
#[macro_export]
macro_rules! manifest {
    ($file:literal) => {
        core::arch::global_asm!(
            ".pushsection .memvirt, \"\", @progbits",
            concat!(".incbin \"", $file, "\""),
            ".popsection"
        );
    };
}

/// The way in: a function that takes the number of the processor, and whose answer ends the run. A panic ends it with 0xff,
/// and its message is on the console.
#[macro_export]
macro_rules! test {
    ($test:path) => {
        core::arch::global_asm!(".pushsection .text", ".globl start", "start: call guest_test", ".popsection");
        #[unsafe(no_mangle)]
        extern "C" fn guest_test(processor: u64) -> ! {
            let test: fn(u64) -> u8 = $test;
            $crate::finish(test(processor))
        }
    };
}

/// Ends the run.
pub fn finish(code: u8) -> ! {
    out_byte(0xf4, code);
    loop {}
}

/// Has the host do the steps of the manifest for this bell.
pub fn ring(bell: u8) {
    out_byte(0xf8, bell);
}

fn out_byte(port: u16, value: u8) {
    // SAFETY: the host's ports change no memory that Rust knows of.
    unsafe { asm!("out dx, al", in("dx") port, in("al") value) };
}

/// The word at an address that the manifest gives the guest, as the processor finds it just now.
pub fn load(address: u64) -> u64 {
    // SAFETY: it is no object of this program; if nothing is there, the guest fails.
    unsafe { (address as *const u64).read_volatile() }
}

/// Writes a word there.
pub fn store(address: u64, value: u64) {
    // SAFETY: as for `load`.
    unsafe { (address as *mut u64).write_volatile(value) };
}

/// The console, for `write!`.
pub struct Console;

impl Write for Console {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        text.bytes().for_each(|byte| out_byte(0x3f8, byte));
        Ok(())
    }
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    let _ = write!(Console, "{info}");
    finish(0xff)
}

/// What the compiler and `core` take for granted.
mod taken_for_granted {
    use core::arch::asm;

    /// Nothing unwinds.
    #[unsafe(no_mangle)]
    extern "C" fn rust_eh_personality() {}

    #[unsafe(no_mangle)]
    unsafe extern "C" fn memcpy(to: *mut u8, from: *const u8, bytes: usize) -> *mut u8 {
        // SAFETY: the caller's.
        unsafe { asm!("rep movsb", inout("rdi") to => _, inout("rsi") from => _, inout("rcx") bytes => _) };
        to
    }

    #[unsafe(no_mangle)]
    unsafe extern "C" fn memset(to: *mut u8, value: i32, bytes: usize) -> *mut u8 {
        // SAFETY: the caller's.
        unsafe { asm!("rep stosb", inout("rdi") to => _, in("al") value as u8, inout("rcx") bytes => _) };
        to
    }
}
