//! The first serial port: a 16550 UART as a program sees it that polls. What it sends is the console's.

/// Its registers lie at eight ports from here.
pub(super) const FIRST_PORT: u16 = 0x3f8;
pub(super) const LAST_PORT: u16 = FIRST_PORT + 7;

/// So many bytes of console output are kept: a guest can write them as fast as it can run.
const MAX_CONSOLE: usize = 1 << 16;

const DATA: u16 = 0;
const INTERRUPT_ENABLE: u16 = 1;
const INTERRUPT_IDENTIFICATION: u16 = 2;
const LINE_CONTROL: u16 = 3;
const MODEM_CONTROL: u16 = 4;
const LINE_STATUS: u16 = 5;
const MODEM_STATUS: u16 = 6;
const SCRATCH: u16 = 7;

/// Of the line control: the first two registers are the divisor.
const DIVISOR_LATCH: u8 = 1 << 7;
/// The line status: all is sent, nothing came in.
const SENDER_EMPTY: u8 = 1 << 6 | 1 << 5;
/// No interrupt is pending.
const NO_INTERRUPT: u8 = 1 << 0;
/// The modem status: carrier, data set ready, clear to send.
const CONNECTED: u8 = 1 << 7 | 1 << 5 | 1 << 4;

/// A UART that sends at once, receives nothing and never interrupts.
#[derive(Debug, Default)]
pub(super) struct Serial {
    sent: Vec<u8>,
    interrupt_enable: u8,
    line_control: u8,
    modem_control: u8,
    divisor: [u8; 2],
    scratch: u8,
}

impl Serial {
    /// What it has sent.
    pub(super) fn into_console(self) -> Vec<u8> {
        self.sent
    }

    pub(super) fn read(&self, port: u16) -> u8 {
        let latch = self.line_control & DIVISOR_LATCH != 0;
        match port - FIRST_PORT {
            register @ (DATA | INTERRUPT_ENABLE) if latch => self.divisor[usize::from(register)],
            INTERRUPT_ENABLE => self.interrupt_enable,
            INTERRUPT_IDENTIFICATION => NO_INTERRUPT,
            LINE_CONTROL => self.line_control,
            MODEM_CONTROL => self.modem_control,
            LINE_STATUS => SENDER_EMPTY,
            MODEM_STATUS => CONNECTED,
            SCRATCH => self.scratch,
            _ => 0,
        }
    }

    pub(super) fn write(&mut self, port: u16, value: u8) {
        let latch = self.line_control & DIVISOR_LATCH != 0;
        match port - FIRST_PORT {
            register @ (DATA | INTERRUPT_ENABLE) if latch => self.divisor[usize::from(register)] = value,
            DATA if self.sent.len() < MAX_CONSOLE => self.sent.push(value),
            INTERRUPT_ENABLE => self.interrupt_enable = value & 0xf,
            LINE_CONTROL => self.line_control = value,
            MODEM_CONTROL => self.modem_control = value & 0x1f,
            SCRATCH => self.scratch = value,
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_divisor_is_not_sent() {
        let mut serial = Serial::default();
        for (register, value) in [(3, 0x80), (0, 1), (1, 2)] {
            serial.write(FIRST_PORT + register, value);
        }
        assert_eq!([0, 1].map(|register| serial.read(FIRST_PORT + register)), [1, 2]);
        serial.write(FIRST_PORT + 3, 3);
        assert_eq!(serial.read(FIRST_PORT + 5) & 0x60, 0x60);
        serial.write(FIRST_PORT, b'x');
        assert_eq!(serial.into_console(), b"x");
    }

    #[test]
    fn a_talkative_guest_is_cut_off() {
        let mut serial = Serial::default();
        for _ in 0..=MAX_CONSOLE {
            serial.write(FIRST_PORT, 0);
        }
        assert_eq!(serial.into_console().len(), MAX_CONSOLE);
    }
}
