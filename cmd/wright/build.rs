//! Links `wright` at a fixed address.
//!
//! It executes itself twice for each container (`src/sealed.rs`). Position-independent, each time every page of relocated constants
//! would be copied and written; fixed, they are the file's own pages. Stack, heap and mappings are still placed at random.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    // The last of the contradicting options counts, and rustc's own `-static-pie` comes before.
    println!("cargo::rustc-link-arg-bins=-no-pie");
    println!("cargo::rustc-link-arg-bins=-static");
}
