//! What a cluster and an account are given: everything below deploy/.

mod install;
mod kustomize;
mod manifests;
