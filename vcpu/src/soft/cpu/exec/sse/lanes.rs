//! A vector of 128 bits as lanes: integers of one type, the lowest first.

/// An integer that vectors are made of.
pub(super) trait Lane: Copy {
    /// How many make a vector.
    const COUNT: usize;
    /// The lowest lane.
    fn cut(vector: u128) -> Self;
    /// A vector of this lane and zeros.
    fn widen(self) -> u128;
}

macro_rules! lane {
    ($($integer:ty as $unsigned:ty),*) => {
        $(impl Lane for $integer {
            const COUNT: usize = 128 / Self::BITS as usize;
            fn cut(vector: u128) -> Self {
                vector as Self
            }
            fn widen(self) -> u128 {
                (self as $unsigned).into()
            }
        })*
    };
}

lane!(u8 as u8, i8 as u8, u16 as u16, i16 as u16, u32 as u32, i32 as u32, u64 as u64);

/// Lane `index`.
pub(super) fn lane<T: Lane>(vector: u128, index: usize) -> T {
    T::cut(vector >> (index * 128 / T::COUNT))
}

/// The vector whose lane `i` is `lane(i)`.
pub(super) fn build<T: Lane>(lane: impl Fn(usize) -> T) -> u128 {
    (0..T::COUNT).fold(0, |vector, i| vector | lane(i).widen() << (i * 128 / T::COUNT))
}

/// Lane by lane.
pub(super) fn map<T: Lane>(a: u128, operation: impl Fn(T) -> T) -> u128 {
    build(|i| operation(lane(a, i)))
}

/// Lane by lane of two vectors.
pub(super) fn zip<T: Lane>(a: u128, b: u128, operation: impl Fn(T, T) -> T) -> u128 {
    build(|i| operation(lane(a, i), lane(b, i)))
}

/// All ones in the lanes where `holds`.
pub(super) fn compare<T: Lane>(a: u128, b: u128, holds: impl Fn(&T, &T) -> bool) -> u128 {
    build(|i| T::cut(if holds(&lane(a, i), &lane(b, i)) { u128::MAX } else { 0 }))
}
