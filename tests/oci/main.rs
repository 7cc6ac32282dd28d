//! `wright`, the OCI command line, on the real kernel.

mod life;
