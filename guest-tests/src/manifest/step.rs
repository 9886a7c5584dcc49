//! What the host does while the guest runs.

use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, Error, Visitor};

use crate::values::Numbers;
use crate::{Bytes, Location, Rights};

/// When the host does something, or looks at something.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Occasion {
    /// The guest writes this number to the bell's port.
    Bell(u8),
    /// The guest does what the host's own page does not allow, or reaches one that the host cannot give: the vCPU leaves
    /// with `EFAULT`. Without a step for it, the run ends.
    MemoryFault,
    /// Again and again, wherever the guest is: every 1,009 instructions of the software machine, every 100 microseconds
    /// on KVM, counted from its last exit. A read of the bell's port gives how often that was, at most 255.
    Tick,
}

/// A thing that the host does: `[[step]]`. Those of one occasion are done in order; neighbours that change regions are one
/// transaction. After the last of them all second-level tables are verified.
///
/// | `do` | keys | what |
/// |---|---|---|
/// | `enable`, `disable` | `region` | shows it, hides it |
/// | `move` | `region`, `gpa` | to another guest-physical address |
/// | `prioritize` | `region`, `priority` | where regions overlap, the higher one is seen |
/// | `read-only`, `writable` | `region` | whether the guest may write |
/// | `direct`, `trap` | `region` | reads of a ROM device: of its memory, or by the device |
/// | `shift` | `region`, `offset` | an alias begins elsewhere in its target |
/// | `resize` | `region`, `size` | shows less of it, or more |
/// | `log`, `unlog` | `region` | the dirty log, on and off |
/// | `dirty` | `region`, `pages` | takes the dirty pages: exactly these (`[1, 5]`, or `"0-15"`), counted from the start of the region's memory |
/// | `discard` | `at`, `size` | gives pages back: they are zero afterwards |
/// | `migrate` | `at`, `size` | pages get other frames and keep their bytes |
/// | `protect` | `at`, `size`, `access` | what the host's own mapping allows: `rw`, `r` or nothing |
/// | `store` | `at`, `value` | writes eight bytes, as a device does |
/// | `faults` | `most` | at most so many second-level faults since the last time, or the start |
///
/// `at` is a guest-physical address.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(try_from = "Keys")]
pub struct StepSpec {
    /// When.
    pub on: Occasion,
    /// What.
    pub action: Action,
}

/// What the host does.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Action {
    /// Changes a region.
    Change {
        /// Its name.
        region: String,
        /// What becomes of it.
        change: Change,
    },
    /// Takes the dirty pages of a region's memory.
    Dirty {
        /// Its name.
        region: String,
        /// Those that must be dirty, and no other: numbers of 4 KiB pages, ascending.
        pages: Vec<u64>,
    },
    /// Lets something happen to the host's memory behind a range.
    Memory {
        /// The first guest-physical address.
        at: Location,
        /// Its size in bytes.
        size: u64,
        /// What happens.
        event: MemoryEvent,
    },
    /// Writes eight bytes to guest memory.
    Store {
        /// Where.
        at: Location,
        /// What.
        value: u64,
    },
    /// Counts second-level faults since the last time.
    Faults {
        /// The most that may have been.
        most: u64,
    },
}

/// What becomes of a region.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Change {
    /// It is seen, or not.
    Enabled(bool),
    /// It is seen from this guest-physical address on.
    Gpa(u64),
    /// It has this priority.
    Priority(i32),
    /// It cannot be written, or can.
    Readonly(bool),
    /// It is read directly, or by its device.
    Direct(bool),
    /// It shows its target from this offset on.
    Offset(u64),
    /// It has so many bytes.
    Size(u64),
    /// Writes to it are logged, or not.
    Logged(bool),
}

/// What happens to the host's memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MemoryEvent {
    /// It is given back.
    Discard,
    /// It gets other frames.
    Migrate,
    /// The host's own mapping allows this.
    Protect(Rights),
}

/// The keys of a step, as they are written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Keys {
    on: Occasion,
    #[serde(rename = "do")]
    verb: String,
    region: Option<String>,
    gpa: Option<Bytes>,
    priority: Option<i32>,
    offset: Option<Bytes>,
    size: Option<Bytes>,
    pages: Option<Numbers>,
    at: Option<Location>,
    access: Option<Rights>,
    value: Option<u64>,
    most: Option<u64>,
}

impl Keys {
    /// The action, and the keys that it has used.
    fn action(&mut self) -> Result<Action, String> {
        let verb = self.verb.clone();
        let missing = |key: &str| format!("`{verb}` needs the key `{key}`");
        macro_rules! key {
            ($key:ident) => {
                self.$key.take().ok_or_else(|| missing(stringify!($key)))?
            };
        }
        let change = match verb.as_str() {
            "enable" => Change::Enabled(true),
            "disable" => Change::Enabled(false),
            "read-only" => Change::Readonly(true),
            "writable" => Change::Readonly(false),
            "direct" => Change::Direct(true),
            "trap" => Change::Direct(false),
            "log" => Change::Logged(true),
            "unlog" => Change::Logged(false),
            "move" => Change::Gpa(key!(gpa).0),
            "prioritize" => Change::Priority(key!(priority)),
            "shift" => Change::Offset(key!(offset).0),
            "resize" => Change::Size(key!(size).0),
            "dirty" => return Ok(Action::Dirty { region: key!(region), pages: key!(pages).0 }),
            "store" => return Ok(Action::Store { at: key!(at), value: key!(value) }),
            "faults" => return Ok(Action::Faults { most: key!(most) }),
            "discard" | "migrate" | "protect" => {
                let event = match verb.as_str() {
                    "discard" => MemoryEvent::Discard,
                    "migrate" => MemoryEvent::Migrate,
                    _ => MemoryEvent::Protect(key!(access)),
                };
                return Ok(Action::Memory { at: key!(at), size: key!(size).0, event });
            }
            _ => return Err(format!("`{verb}` is nothing that the host does")),
        };
        Ok(Action::Change { region: key!(region), change })
    }

    /// A key that no action has used.
    fn left(&self) -> Option<&'static str> {
        let keys = [
            ("region", self.region.is_some()),
            ("gpa", self.gpa.is_some()),
            ("priority", self.priority.is_some()),
            ("offset", self.offset.is_some()),
            ("size", self.size.is_some()),
            ("pages", self.pages.is_some()),
            ("at", self.at.is_some()),
            ("access", self.access.is_some()),
            ("value", self.value.is_some()),
            ("most", self.most.is_some()),
        ];
        keys.into_iter().find(|(_, left)| *left).map(|(key, _)| key)
    }
}

impl TryFrom<Keys> for StepSpec {
    type Error = String;
    fn try_from(mut keys: Keys) -> Result<Self, String> {
        let action = keys.action()?;
        match keys.left() {
            Some(key) => Err(format!("`{}` has no key `{key}`", keys.verb)),
            None => Ok(Self { on: keys.on, action }),
        }
    }
}

impl fmt::Display for Occasion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bell(number) => write!(f, "bell {number}"),
            Self::MemoryFault => f.write_str("memory fault"),
            Self::Tick => f.write_str("tick"),
        }
    }
}

impl<'de> Deserialize<'de> for Occasion {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(OccasionVisitor)
    }
}

struct OccasionVisitor;

impl Visitor<'_> for OccasionVisitor {
    type Value = Occasion;
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the number of a bell, `memory-fault` or `tick`")
    }
    fn visit_u64<E: Error>(self, number: u64) -> Result<Occasion, E> {
        let bell = u8::try_from(number);
        bell.map(Occasion::Bell).map_err(|_| E::custom(format!("bell {number} is not within 0 to 255")))
    }
    fn visit_i64<E: Error>(self, number: i64) -> Result<Occasion, E> {
        self.visit_u64(u64::try_from(number).unwrap_or(u64::MAX))
    }
    fn visit_str<E: Error>(self, text: &str) -> Result<Occasion, E> {
        match text {
            "memory-fault" => Ok(Occasion::MemoryFault),
            "tick" => Ok(Occasion::Tick),
            _ => Err(E::custom(format!(
                "`{text}` never happens: use a bell's number, `memory-fault` or `tick`"
            ))),
        }
    }
}
