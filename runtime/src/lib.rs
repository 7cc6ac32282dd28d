//! The container engine: everything between a `config.json` and a running process.
