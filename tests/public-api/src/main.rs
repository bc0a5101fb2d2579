//! Prints the public API from rustdoc's JSON: one line for each item, in the order of their paths.

use std::process::ExitCode;

fn main() -> ExitCode {
    let Some(json) = std::env::args_os().nth(1) else {
        eprintln!("usage: leasehold-public-api target/doc/leasehold.json");
        return ExitCode::FAILURE;
    };
    // Every type has the implementations that are left out here.
    let api = public_api::Builder::from_rustdoc_json(json)
        .omit_blanket_impls(true)
        .omit_auto_trait_impls(true)
        .omit_auto_derived_impls(true)
        .build();
    match api {
        Ok(api) => {
            print!("{api}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("leasehold-public-api: {error}");
            ExitCode::FAILURE
        }
    }
}
