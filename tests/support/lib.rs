//! What every test needs: private directories, the real binaries, a real root, host snapshots.
#![forbid(unsafe_code)]
