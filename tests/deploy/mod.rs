//! What a cluster and an account are given: everything below deploy/.

mod kustomize;
mod manifests;
