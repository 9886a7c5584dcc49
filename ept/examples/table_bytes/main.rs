//! What tables cost in memory: the guest's own, a second level of EPT or NPT, and shadows of the guest's, for 1, 8 and 64
//! address spaces over the same memory. `cargo run --release -p ept --example table_bytes`

mod cost;

use cost::{Cost, MEMORY_BYTES, cost};

fn main() -> Result<(), ept::Error> {
    println!(
        "Each address space maps the same {} MiB in pages of 4 KiB and writes to all of it.\n",
        MEMORY_BYTES >> 20
    );
    println!(
        "{:>14} {:>14} {:>12} {:>12} {:>12}",
        "address spaces", "guest's tables", "EPT", "NPT", "shadow"
    );
    for spaces in [1, 8, 64] {
        let Cost { guest, ept, npt, shadow } = cost(spaces)?;
        let [guest, ept, npt, shadow] = [guest, ept, npt, shadow].map(|bytes| format!("{} KiB", bytes >> 10));
        println!("{spaces:>14} {guest:>14} {ept:>12} {npt:>12} {shadow:>12}");
    }
    Ok(())
}
