//! The cases, by rules C1 to C3.

use std::sync::Mutex;

/// One bit of a case.
macro_rules! flags {
    ($($name:ident)*) => { flags!(@ 0; $($name)*); };
    (@ $n:expr; $name:ident $($rest:ident)*) => {
        pub const $name: u32 = 1 << ($n);
        flags!(@ $n + 1; $($rest)*);
    };
    (@ $n:expr;) => { const FLAGS: u32 = $n; };
}

flags! {
    PTE_P PTE_W PTE_U PTE_A PTE_D PTE_NX PTE_51 PTE_36
    PDE_P PDE_W PDE_U PDE_A PDE_D PDE_PS PDE_NX PDE_51 PDE_36 PDE_13
    PDPTE_NO_WRITE
    PKRU_AD PKRU_WD KEY
    USER WRITE FETCH TWICE
    EFER_NX WP SMEP PKE
    FORCED_EMULATION
}

/// The flags by which a processor is set up; they are the same in all cases of one part of a [`Space`].
pub const PROCESSOR: u32 = EFER_NX | WP | PKE | PKRU_AD | PKRU_WD;

/// The cases of one kind of processor.
#[derive(Clone, Copy, Debug)]
pub struct Space {
    /// MAXPHYADDR.
    pub width: u32,
    /// Whether it has protection keys.
    pub keys: bool,
}

impl Space {
    /// The flags that vary. Rule C2: bits 51 and 36 only while they are reserved. Rule C1: SMEP never. Software has
    /// one way to walk, so forced emulation changes nothing.
    pub fn in_play(self) -> u32 {
        let mut flags = ((1 << FLAGS) - 1) & !(SMEP | FORCED_EMULATION);
        if self.width >= 52 {
            flags &= !(PTE_51 | PDE_51);
        }
        if self.width >= 37 {
            flags &= !(PTE_36 | PDE_36);
        }
        if !self.keys {
            flags &= !(PKE | PKRU_AD | PKRU_WD | KEY);
        }
        flags
    }

    /// The parts of the space: the settings of [`PROCESSOR`].
    pub fn processors(self) -> Vec<u32> {
        subsets(self.in_play() & PROCESSOR).collect()
    }

    /// The legal cases with these settings of [`PROCESSOR`].
    pub fn cases(self, processor: u32) -> impl Iterator<Item = u32> {
        subsets(self.in_play() & !PROCESSOR).map(move |flags| flags | processor).filter(|&flags| legal(flags))
    }
}

/// Rule C1.
fn legal(flags: u32) -> bool {
    let has = |flag| flags & flag != 0;
    if has(WRITE) && has(FETCH) {
        return false;
    }
    if (has(PKRU_AD) || has(PKRU_WD)) && !has(PKE) {
        return false;
    }
    if has(PDE_13) && !has(PDE_PS) {
        return false;
    }
    let mut reserved = flags & (PTE_51 | PTE_36 | PDE_51 | PDE_36 | PDE_13);
    if !has(EFER_NX) {
        reserved |= flags & (PTE_NX | PDE_NX);
    }
    reserved.count_ones() <= 1
}

/// All values that have no bit outside `mask`.
fn subsets(mask: u32) -> impl Iterator<Item = u32> {
    std::iter::successors(Some(0_u32), move |last| match last.wrapping_sub(mask) & mask {
        0 => None,
        next => Some(next),
    })
}

/// Shares the parts of a space between two threads; gives what `work` made of each.
pub fn on_two_threads<T: Send>(space: Space, work: impl Fn(u32) -> T + Sync) -> Vec<T> {
    let parts = Mutex::new(space.processors());
    let worker = || {
        let next = || parts.lock().unwrap().pop();
        std::iter::from_fn(next).map(&work).collect::<Vec<T>>()
    };
    std::thread::scope(|scope| {
        let threads = [scope.spawn(worker), scope.spawn(worker)];
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    })
}

/// Rule C3: the sizes of the four spaces, with all their cases.
pub const SPACES: [(Space, usize); 4] = [
    (Space { width: 46, keys: true }, 19_169_280),
    (Space { width: 46, keys: false }, 1_916_928),
    (Space { width: 52, keys: true }, 9_338_880),
    (Space { width: 36, keys: true }, 28_999_680),
];

#[test]
fn c1_c2_c3_the_spaces_have_the_known_sizes() {
    for (space, size) in SPACES {
        let counted: usize = on_two_threads(space, |processor| space.cases(processor).count()).iter().sum();
        assert_eq!(counted, size, "{space:?}");
    }
}

#[test]
fn c1_31_flags_and_none_but_legal_cases() {
    assert_eq!(FLAGS, 31);
    let legal = |flags| super::case::legal(flags);
    assert!(legal(WRITE) && legal(FETCH) && !legal(WRITE | FETCH));
    assert!(legal(PKE | PKRU_AD | PKRU_WD) && !legal(PKRU_AD) && !legal(PKRU_WD));
    assert!(legal(PDE_PS | PDE_13) && !legal(PDE_13));
    assert!(legal(EFER_NX | PTE_NX | PDE_NX | PTE_51) && !legal(PTE_NX | PDE_NX) && !legal(PTE_NX | PTE_51));
    assert!(!legal(PTE_36 | PDE_36) && !legal(PDE_51 | PTE_51));
}
