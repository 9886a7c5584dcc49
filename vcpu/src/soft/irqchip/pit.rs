//! The 8254 timer of a PC: channel 0 interrupts, channel 2 is the speaker's, and port 0x61 has its gate and output.
//! Its channels count in binary.

/// Counts a second.
const FREQUENCY: u128 = 1_193_182;
/// The rate of the clock.
const CLOCK: u128 = super::TICKS_A_SECOND as u128;

const FIRST_PORT: u16 = 0x40;
const CONTROL: u16 = 0x43;
const SPEAKER: u16 = 0x61;
const SPEAKER_CHANNEL: usize = 2;
/// Port 0x61 has a bit that changes each time memory would be refreshed.
const REFRESH: u64 = 15_085;

/// Which bytes of a count are accessed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Bytes {
    Low,
    High,
    /// Low, then high.
    Both,
}

/// A value to be read byte by byte.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Latched {
    value: u16,
    /// The low byte was read.
    half: bool,
}

/// How far a channel has counted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Counting {
    /// No count was loaded since the mode was set.
    Idle,
    /// Its gate is closed after so many counts.
    Paused(u64),
    /// Since then.
    Since(u64),
}

#[derive(Clone, Debug)]
struct Channel {
    mode: u8,
    bytes: Bytes,
    /// 1 to 0x10000.
    count: u64,
    counting: Counting,
    gate: bool,
    /// The first byte of a count that is being written.
    written: Option<u8>,
    latched: Option<Latched>,
    status: Option<u8>,
    /// The high byte comes next, of a count that is not latched.
    half: bool,
    /// Rising edges of the output that were seen.
    edges: u64,
}

/// Counts in so much time.
fn counts(time: u64) -> u64 {
    (u128::from(time) * FREQUENCY / CLOCK) as u64
}

/// The time that so many counts take.
fn time(counts: u64) -> u64 {
    (u128::from(counts) * CLOCK).div_ceil(FREQUENCY) as u64
}

impl Channel {
    fn new(gate: bool) -> Self {
        Self {
            mode: 0,
            bytes: Bytes::Both,
            count: 0x1_0000,
            counting: Counting::Idle,
            gate,
            written: None,
            latched: None,
            status: None,
            half: false,
            edges: 0,
        }
    }

    /// Counts since the last load.
    fn done(&self, now: u64) -> u64 {
        match self.counting {
            Counting::Idle => 0,
            Counting::Paused(done) => done,
            Counting::Since(start) => counts(now.saturating_sub(start)),
        }
    }

    fn is_periodic(&self) -> bool {
        matches!(self.mode, 2 | 3)
    }

    /// What a read of the counter gives.
    fn value(&self, now: u64) -> u16 {
        let done = self.done(now);
        match self.mode {
            2 => (self.count - done % self.count) as u16,
            // By twos.
            3 => (self.count - done * 2 % self.count) as u16,
            _ => self.count.wrapping_sub(done) as u16,
        }
    }

    fn output(&self, now: u64) -> bool {
        let done = self.done(now);
        match self.mode {
            _ if self.counting == Counting::Idle => self.mode != 0,
            0 | 1 => done >= self.count,
            2 => done % self.count != self.count - 1,
            3 => done % self.count < self.count.div_ceil(2),
            _ => done != self.count,
        }
    }

    /// How many counts after the load the output rises for the `number`th time; `None` if never.
    fn rises(&self, number: u64) -> Option<u64> {
        match self.mode {
            2 | 3 => number.checked_mul(self.count),
            0 if number == 1 => Some(self.count),
            4 if number == 1 => Some(self.count + 1),
            // A rising gate starts the others.
            _ => None,
        }
    }

    /// When the output rises next.
    fn due(&self) -> Option<u64> {
        match self.counting {
            Counting::Since(start) => start.checked_add(time(self.rises(self.edges + 1)?)),
            _ => None,
        }
    }

    /// Whether the output has risen since the last call.
    fn advance(&mut self, now: u64) -> bool {
        if self.due().is_none_or(|due| due > now) {
            return false;
        }
        self.edges = if self.is_periodic() { self.done(now) / self.count } else { 1 };
        true
    }

    fn control(&mut self, value: u8, now: u64) {
        let bytes = match value >> 4 & 3 {
            0 => return self.latch(now),
            1 => Bytes::Low,
            2 => Bytes::High,
            _ => Bytes::Both,
        };
        let mode = match value >> 1 & 7 {
            // Bit 2 does not matter to the periodic modes.
            mode @ (6 | 7) => mode & 3,
            mode => mode,
        };
        *self = Self { mode, bytes, ..Self::new(self.gate) };
    }

    fn latch(&mut self, now: u64) {
        let value = self.value(now);
        self.latched.get_or_insert(Latched { value, half: false });
    }

    /// Of the read-back command: output, whether a count is missing, and the mode.
    fn latch_status(&mut self, now: u64) {
        let bytes = match self.bytes {
            Bytes::Low => 1,
            Bytes::High => 2,
            Bytes::Both => 3,
        };
        let idle = self.counting == Counting::Idle;
        let status = u8::from(self.output(now)) << 7 | u8::from(idle) << 6 | bytes << 4 | self.mode << 1;
        self.status.get_or_insert(status);
    }

    fn write(&mut self, byte: u8, now: u64) {
        let count = match (self.bytes, self.written.take()) {
            (Bytes::Low, _) => byte.into(),
            (Bytes::High, _) => u64::from(byte) << 8,
            (Bytes::Both, Some(low)) => u64::from(low) | u64::from(byte) << 8,
            (Bytes::Both, None) => {
                self.written = Some(byte);
                return;
            }
        };
        self.count = if count == 0 { 0x1_0000 } else { count };
        self.start(now);
    }

    fn start(&mut self, now: u64) {
        self.edges = 0;
        self.counting = if self.gate { Counting::Since(now) } else { Counting::Paused(0) };
    }

    fn read(&mut self, now: u64) -> u8 {
        if let Some(status) = self.status.take() {
            return status;
        }
        let (value, half) = match self.latched {
            Some(Latched { value, half }) => (value, half),
            None => (self.value(now), self.half),
        };
        let [low, high] = value.to_le_bytes();
        let (byte, more) = match self.bytes {
            Bytes::Low => (low, false),
            Bytes::High => (high, false),
            Bytes::Both => (if half { high } else { low }, !half),
        };
        match &mut self.latched {
            Some(latched) if more => latched.half = true,
            Some(_) => self.latched = None,
            None => self.half = more,
        }
        byte
    }

    /// An open gate lets it count; in modes 1, 2, 3 and 5 it starts anew.
    fn set_gate(&mut self, gate: bool, now: u64) {
        let was_open = std::mem::replace(&mut self.gate, gate);
        let rises = gate && !was_open;
        match self.counting {
            Counting::Idle => {}
            _ if rises && matches!(self.mode, 1 | 2 | 3 | 5) => self.start(now),
            Counting::Paused(done) if gate => self.counting = Counting::Since(now.saturating_sub(time(done))),
            Counting::Since(_) if !gate && !matches!(self.mode, 1 | 5) => {
                self.counting = Counting::Paused(self.done(now));
            }
            _ => {}
        }
    }
}

/// The 8254, and what port 0x61 has of it.
#[derive(Clone, Debug)]
pub(super) struct Pit {
    channels: [Channel; 3],
    speaker: bool,
}

impl Pit {
    /// Nothing counts. The gate of the speaker's channel is closed.
    pub fn new() -> Self {
        Self { channels: [true, true, false].map(Channel::new), speaker: false }
    }

    /// When channel 0 interrupts next.
    pub fn due(&self) -> Option<u64> {
        self.channels[0].due()
    }

    /// Whether channel 0 has interrupted since the last call.
    pub fn advance(&mut self, now: u64) -> bool {
        self.channels[0].advance(now)
    }

    pub fn read(&mut self, port: u16, now: u64) -> Option<u8> {
        match port {
            FIRST_PORT..CONTROL => Some(self.channels[usize::from(port - FIRST_PORT)].read(now)),
            // The control word cannot be read.
            CONTROL => Some(0),
            SPEAKER => {
                let channel = &self.channels[SPEAKER_CHANNEL];
                let refresh = !(now / REFRESH).is_multiple_of(2);
                let bits = [(0, channel.gate), (1, self.speaker), (4, refresh), (5, channel.output(now))];
                Some(bits.into_iter().map(|(bit, set)| u8::from(set) << bit).sum())
            }
            _ => None,
        }
    }

    /// Whether the port is one of its.
    pub fn write(&mut self, port: u16, value: u8, now: u64) -> bool {
        match port {
            FIRST_PORT..CONTROL => self.channels[usize::from(port - FIRST_PORT)].write(value, now),
            CONTROL => match value >> 6 {
                3 => self.read_back(value, now),
                channel => self.channels[usize::from(channel)].control(value, now),
            },
            SPEAKER => {
                self.speaker = value & 2 != 0;
                self.channels[SPEAKER_CHANNEL].set_gate(value & 1 != 0, now);
            }
            _ => return false,
        }
        true
    }

    /// Latches counts (bit 5 clear) and states (bit 4 clear) of the channels that bits 1 to 3 name.
    fn read_back(&mut self, value: u8, now: u64) {
        for (index, channel) in self.channels.iter_mut().enumerate() {
            if value >> (index + 1) & 1 == 0 {
                continue;
            }
            if value & 0x20 == 0 {
                channel.latch(now);
            }
            if value & 0x10 == 0 {
                channel.latch_status(now);
            }
        }
    }
}
