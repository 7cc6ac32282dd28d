//! CRI calls against the real daemon.
