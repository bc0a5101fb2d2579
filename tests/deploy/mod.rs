//! The files below deploy/, for a cluster and an AWS account.

mod check;
mod check_manifest;
mod check_rules;
mod check_variants;
mod cloudformation;
mod existing_cluster;
mod generated;
mod helm;
mod identity;
mod image;
mod install;
mod kustomize;
mod manifests;
mod policies;
mod stack;
mod walk;
