//! What the syntax of a manifest cannot say.

use memory_model::{AddrRange, Gpa, PageSize};

use super::place::Wrong;
use super::{
    Action, BootSpec, KindSpec, MAX_EXPECTED, MAX_GPA, MAX_MEMORY, MAX_PAGES, MAX_TIME_MS, MAX_VCPUS,
    Manifest, MapSpec, RegionSpec,
};
use crate::Location;

/// Processors that start in long mode, each with a stack of its own.
const MAX_LONG_VCPUS: u32 = 4;

impl Manifest {
    /// Whether it asks for what a file that is started so cannot have.
    pub(crate) fn check_boot(&self, boot: BootSpec) -> Result<(), Wrong> {
        if let Some(asked) = self.machine.boot.filter(|&asked| asked != boot) {
            return Err(alone("machine.boot", format!("`{}` needs {}", asked.word(), asked.needs())));
        }
        if boot == BootSpec::Long && self.machine.vcpus > MAX_LONG_VCPUS {
            return Err(alone(
                "machine.vcpus",
                format!("a guest booted by `long` has at most {MAX_LONG_VCPUS}"),
            ));
        }
        let long_alone = [("map", self.maps.is_empty()), ("handlers", self.handlers.is_empty())];
        match long_alone.into_iter().find(|(_, absent)| boot != BootSpec::Long && !absent) {
            Some((what, _)) => Err(alone(what, format!("not for a guest booted by `{}`", boot.word()))),
            None => Ok(()),
        }
    }

    /// All that does not depend on the file.
    pub(crate) fn check(&self) -> Result<(), Wrong> {
        let machine = &self.machine;
        if !matches!(machine.ring, 0 | 3) {
            return Err(alone("machine.ring", format!("{} is neither 0 nor 3", machine.ring)));
        }
        within("machine.vcpus", machine.vcpus.into(), MAX_VCPUS.into())?;
        within("budget.ms", self.budget.ms, MAX_TIME_MS)?;
        self.check_regions()?;
        for (index, map) in self.maps.iter().enumerate() {
            map.check(&format!("map.{index}"))?;
        }
        self.check_steps()?;
        let expect = &self.expect;
        for (index, pages) in expect.pages.iter().enumerate() {
            within(&format!("expect.pages.{index}.count"), pages.count, MAX_EXPECTED)?;
        }
        for (index, same) in expect.same_page.iter().enumerate() {
            within(&format!("expect.same_page.{index}.count"), same.count, MAX_EXPECTED)?;
        }
        for (index, absent) in expect.absent.iter().enumerate() {
            within(&format!("expect.absent.{index}.count"), absent.count, MAX_EXPECTED)?;
        }
        for (index, access) in expect.mmio.iter().flatten().enumerate() {
            within(&format!("expect.mmio.{index}.size"), access.size.into(), 8)?;
        }
        Ok(())
    }

    /// All that may name a symbol, and where.
    pub(crate) fn locations(&self) -> impl Iterator<Item = (String, &Location)> {
        let handlers = self.handlers.values().map(|handler| ("handlers".to_owned(), handler));
        let steps = self.steps.iter().enumerate().filter_map(|(index, step)| match &step.action {
            Action::Memory { at, .. } | Action::Store { at, .. } => Some((format!("step.{index}.at"), at)),
            _ => None,
        });
        let expect = &self.expect;
        let pages = expect.pages.iter().enumerate();
        let pages = pages.map(|(index, pages)| (format!("expect.pages.{index}.at"), &pages.at));
        let same = expect.same_page.iter().enumerate().flat_map(|(index, same)| {
            let at = |key: &str| format!("expect.same_page.{index}.{key}");
            [(at("one"), &same.one), (at("other"), &same.other)]
        });
        let absent = expect.absent.iter().enumerate();
        let absent = absent.map(|(index, absent)| (format!("expect.absent.{index}.at"), &absent.at));
        handlers.chain(steps).chain(pages).chain(same).chain(absent)
    }

    fn check_regions(&self) -> Result<(), Wrong> {
        let mut all: Vec<(AddrRange<Gpa>, RegionSpec)> = Vec::new();
        let mut memory = 0u64;
        let named = (0..).map(|index| format!("region.{index}")).zip(self.regions.iter().cloned());
        for (path, region) in std::iter::once(("machine.memory".to_owned(), self.main_ram())).chain(named) {
            let wrong = |key: &str, why: String| {
                Wrong::new(format!("{path}.{key}"), format!("region `{}`", region.name), why)
            };
            let range = region.check(&path, &all)?;
            if matches!(region.kind, KindSpec::Ram | KindSpec::Rom | KindSpec::RomDevice) {
                memory = memory.saturating_add(region.size.0);
                if memory > MAX_MEMORY {
                    return Err(wrong("size", format!("more than {MAX_MEMORY:#x} bytes of memory in all")));
                }
            }
            let tie =
                all.iter().find(|(other, spec)| other.overlaps(range) && spec.priority == region.priority);
            if let Some((other, spec)) = tie {
                let why = format!(
                    "{range} overlaps region `{}` at {other} with the same priority {}",
                    spec.name, spec.priority
                );
                return Err(wrong("gpa", why));
            }
            all.push((range, region));
        }
        Ok(())
    }

    /// What the steps name has to be there.
    fn check_steps(&self) -> Result<(), Wrong> {
        let region = |name: &str| {
            let main = (name == "ram").then(|| self.main_ram());
            main.or_else(|| self.regions.iter().find(|region| region.name == name).cloned())
        };
        for (index, step) in self.steps.iter().enumerate() {
            let wrong = |key: &str, why: String| {
                Wrong::new(format!("step.{index}.{key}"), format!("step on {}", step.on), why)
            };
            match &step.action {
                Action::Change { region: name, .. } if region(name).is_none() => {
                    return Err(wrong("region", format!("no region `{name}`")));
                }
                Action::Dirty { region: name, pages } => {
                    let Some(region) = region(name) else {
                        return Err(wrong("region", format!("no region `{name}`")));
                    };
                    if !matches!(region.kind, KindSpec::Ram | KindSpec::Rom | KindSpec::RomDevice) {
                        return Err(wrong("region", format!("region `{name}` has no memory of its own")));
                    }
                    if !pages.is_sorted_by(|one, next| one < next) {
                        return Err(wrong("pages", "they are not ascending".to_owned()));
                    }
                }
                Action::Memory { size, .. }
                    if *size == 0 || !size.is_multiple_of(PageSize::Size4K.bytes()) =>
                {
                    return Err(wrong("size", format!("{size:#x} bytes are not whole pages")));
                }
                _ => {}
            }
        }
        Ok(())
    }
}

impl RegionSpec {
    /// Checks the region by itself and against those named before it; gives its range.
    fn check(&self, path: &str, earlier: &[(AddrRange<Gpa>, Self)]) -> Result<AddrRange<Gpa>, Wrong> {
        let wrong = |key: &str, why: String| {
            Wrong::new(format!("{path}.{key}"), format!("region `{}`", self.name), why)
        };
        let named = |name: &str| earlier.iter().any(|(_, other)| other.name == name);
        if named(&self.name) {
            return Err(wrong("name", "a second region of this name".to_owned()));
        }
        let aligned = |key: &str, value: u64| {
            check_aligned(key, value, PageSize::Size4K).map_err(|why| wrong(key, why))
        };
        aligned("gpa", self.gpa.0)?;
        aligned("size", self.size.0)?;
        let range =
            AddrRange::new(Gpa(self.gpa.0), self.size.0.into()).filter(|range| range.last().0 < MAX_GPA);
        let Some(range) = range else {
            let why =
                format!("{:#x} bytes at {:#x} are empty or reach past {MAX_GPA:#x}", self.size.0, self.gpa.0);
            return Err(wrong("size", why));
        };
        let keys = [
            ("value", self.value.is_some(), matches!(self.kind, KindSpec::Mmio | KindSpec::RomDevice)),
            ("target", self.target.is_some(), self.kind == KindSpec::Alias),
            ("offset", self.offset.is_some(), self.kind == KindSpec::Alias),
        ];
        if let Some((key, ..)) = keys.into_iter().find(|&(_, set, fits)| set && !fits) {
            return Err(wrong(key, format!("`{key}` is not for this kind")));
        }
        if self.kind == KindSpec::Alias {
            aligned("offset", self.offset.map_or(0, |offset| offset.0))?;
            match &self.target {
                None => return Err(wrong("kind", "an alias needs a `target`".to_owned())),
                Some(target) if !named(target) => {
                    return Err(wrong("target", format!("no region `{target}` before it")));
                }
                Some(_) => {}
            }
        }
        Ok(range)
    }
}

impl MapSpec {
    fn check(&self, path: &str) -> Result<(), Wrong> {
        let wrong = |key: &str, why: String| {
            Wrong::new(format!("{path}.{key}"), format!("map of {:#x}", self.gva.0), why)
        };
        for (key, value) in [("gva", self.gva.0), ("gpa", self.gpa.0), ("size", self.size.0)] {
            check_aligned(key, value, self.page.0).map_err(|why| wrong(key, why))?;
        }
        let pages = self.size.0 >> self.page.0.shift();
        if !(1..=MAX_PAGES).contains(&pages) {
            return Err(wrong("size", format!("{pages} pages are not within 1 to {MAX_PAGES}")));
        }
        for (key, first) in [("gva", self.gva.0), ("gpa", self.gpa.0)] {
            if AddrRange::new(Gpa(first), self.size.0.into()).is_none() {
                return Err(wrong(
                    key,
                    format!("{:#x} bytes from {key} {first:#x} wrap around", self.size.0),
                ));
            }
        }
        if !matches!(self.ring, 0 | 3) {
            return Err(wrong("ring", format!("{} is neither 0 nor 3", self.ring)));
        }
        Ok(())
    }
}

/// Something wrong with one key, which says enough by its name.
fn alone(path: &str, why: impl Into<String>) -> Wrong {
    Wrong::new(path, path, why)
}

fn within(path: &str, value: u64, most: u64) -> Result<(), Wrong> {
    match (1..=most).contains(&value) {
        true => Ok(()),
        false => {
            let what: Vec<&str> = path.split('.').filter(|part| part.parse::<usize>().is_err()).collect();
            Err(Wrong::new(path, what.join("."), format!("{value} is not within 1 to {most}")))
        }
    }
}

fn check_aligned(key: &str, value: u64, size: PageSize) -> Result<(), String> {
    if value.is_multiple_of(size.bytes()) {
        Ok(())
    } else {
        Err(format!("{key} {value:#x} is not {size} aligned"))
    }
}
