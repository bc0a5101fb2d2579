//! What a cluster and an account are given: everything below deploy/.

mod check;
mod cloudformation;
mod identity;
mod image;
mod install;
mod kustomize;
mod manifests;
mod stack;
mod walk;
