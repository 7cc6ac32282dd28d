//! Links the monitor at a fixed address.
//!
//! One monitor runs per pod. Position-independent, each would hold its own copy of all relocated constants (280 KiB);
//! fixed, the pages are the program's own and shared by all monitors and pauses. Stack, heap and mappings are still placed at random.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    // The last of the contradicting options counts, and rustc's own `-static-pie` comes before.
    println!("cargo::rustc-link-arg-bins=-no-pie");
    println!("cargo::rustc-link-arg-bins=-static");
}
