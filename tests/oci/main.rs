//! `wright` on the real kernel.
