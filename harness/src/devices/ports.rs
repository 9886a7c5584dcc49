//! The I/O ports of a machine, each a byte wide: a wider access is one of several ports, as on an ISA bus.
//!
//! | ports | what | as in QEMU |
//! |---|---|---|
//! | `0xe0`-`0xe3`, `0xe8`-`0xeb` | four bytes of memory | `pc-testdev` |
//! | `0x3f8`-`0x3ff` | the console | `isa-serial` |
//! | `0x510`, `0x511` | numbers about the machine | `fw_cfg` |
//! | `0x2000`-`0x2017` | interrupt lines, high if not zero | `pc-testdev` |
//!
//! No device is anywhere else: what is written there is lost, and the bus floats high. The exit port is not one of
//! these: it ends the run.

use super::serial::{self, Serial};

/// What a guest can ask `fw_cfg` for, one number an item.
const SIGNATURE: u16 = 0x00;
const RAM_SIZE: u16 = 0x03;
const CPUS: u16 = 0x05;
const MAX_CPUS: u16 = 0x0f;

const FIRST_LINE: u16 = 0x2000;
const LINES: u16 = 24;
const FW_CFG_SELECT: u16 = 0x510;
const FW_CFG_DATA: u16 = 0x511;

/// The devices behind the ports.
#[derive(Debug)]
pub(super) struct Ports {
    pub(super) serial: Serial,
    /// The test device's memory.
    test_bytes: [u8; 4],
    ram_size: u64,
    processors: u32,
    item: u16,
    /// How many bytes of the item were read.
    offset: usize,
}

impl Ports {
    /// For a machine with so much RAM and so many processors.
    pub(super) fn new(ram_size: u64, processors: u32) -> Self {
        let serial = Serial::default();
        Self { serial, test_bytes: [0; 4], ram_size, processors, item: SIGNATURE, offset: 0 }
    }

    /// The interrupt line that a write sets, and how.
    pub(super) fn interrupt_line(port: u16, data: &[u8]) -> Option<(u8, bool)> {
        let line = port.checked_sub(FIRST_LINE).filter(|&line| line < LINES)?;
        Some((line as u8, data.first().is_some_and(|&byte| byte != 0)))
    }

    /// `data` holds elements of `size` bytes, each written to the same port.
    pub(super) fn write(&mut self, port: u16, size: u8, data: &[u8]) {
        for element in data.chunks(size.into()) {
            match (port, element) {
                (FW_CFG_SELECT, &[low, high]) => {
                    (self.item, self.offset) = (u16::from_le_bytes([low, high]), 0)
                }
                _ => (port..=u16::MAX).zip(element).for_each(|(port, &byte)| self.write_byte(port, byte)),
            }
        }
    }

    /// `count` elements of `size` bytes, each read from the same port.
    pub(super) fn read(&mut self, port: u16, size: u8, count: u32) -> Vec<u8> {
        let mut data = vec![0xff; usize::from(size) * count as usize];
        for element in data.chunks_mut(size.into()) {
            (port..=u16::MAX).zip(element).for_each(|(port, byte)| *byte = self.read_byte(port));
        }
        data
    }

    fn write_byte(&mut self, port: u16, byte: u8) {
        match port {
            0xe0..=0xe3 | 0xe8..=0xeb => self.test_bytes[usize::from(port & 3)] = byte,
            serial::FIRST_PORT..=serial::LAST_PORT => self.serial.write(port, byte),
            _ => {}
        }
    }

    fn read_byte(&mut self, port: u16) -> u8 {
        match port {
            0xe0..=0xe3 | 0xe8..=0xeb => self.test_bytes[usize::from(port & 3)],
            serial::FIRST_PORT..=serial::LAST_PORT => self.serial.read(port),
            FW_CFG_DATA => self.next_byte_of_item(),
            _ => 0xff,
        }
    }

    /// Zeros behind the end of an item, and for one that is not there.
    fn next_byte_of_item(&mut self) -> u8 {
        let item = match self.item {
            SIGNATURE => *b"QEMU\0\0\0\0",
            RAM_SIZE => self.ram_size.to_le_bytes(),
            CPUS | MAX_CPUS => u64::from(self.processors).to_le_bytes(),
            _ => [0; 8],
        };
        let byte = item.get(self.offset).copied().unwrap_or(0);
        self.offset = self.offset.saturating_add(1);
        byte
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wide_access_is_one_of_several_ports() {
        let mut ports = Ports::new(0, 1);
        ports.write(0xe0, 4, &0x1234_5678u32.to_le_bytes());
        assert_eq!(ports.read(0xe2, 2, 1), [0x34, 0x12]);
        assert_eq!(ports.read(0xeb, 2, 1), [0x12, 0xff]);
        assert_eq!(ports.read(0xe0, 1, 3), [0x78; 3]);
        assert_eq!(ports.read(0xffff, 4, 1), [0xff; 4]);
        ports.write(0xe0, 1, &[1, 2, 3]);
        assert_eq!(ports.read(0xe0, 1, 1), [3]);
    }

    #[test]
    fn fw_cfg_tells_of_memory_and_processors() {
        let mut ports = Ports::new(0x1_2345_6000, 3);
        let mut item = |item: u16| {
            ports.write(FW_CFG_SELECT, 2, &item.to_le_bytes());
            ports.read(FW_CFG_DATA, 1, 9)
        };
        assert_eq!(item(SIGNATURE), b"QEMU\0\0\0\0\0");
        assert_eq!(item(RAM_SIZE), [0, 0x60, 0x45, 0x23, 1, 0, 0, 0, 0]);
        assert_eq!(item(CPUS)[..2], [3, 0]);
        assert_eq!(item(0xffff), [0; 9]);
    }
}
