//! A setting of leasehold is declared once: as a field with the attributes that clap reads. This
//! derive reads the same attributes, so that a build without clap has the same settings, with the
//! same defaults and the same checks of values.
//!
//! It refuses attributes that it does not know. A setting can therefore not be read in one way from
//! the command line and in another from code.

mod field;

use proc_macro::TokenStream;
use quote::quote;
use syn::{Data, DeriveInput, Error, parse_macro_input};

/// Implements `crate::settings::given::Settings`.
///
/// It also accepts the attributes of schemars, whose own derive is missing in some builds.
#[proc_macro_derive(Settings, attributes(arg, command, schemars))]
pub fn settings(input: TokenStream) -> TokenStream {
    implementation(&parse_macro_input!(input)).unwrap_or_else(Error::into_compile_error).into()
}

fn implementation(input: &DeriveInput) -> Result<proc_macro2::TokenStream, Error> {
    let name = &input.ident;
    let Data::Struct(data) = &input.data else {
        return Err(Error::new_spanned(name, "settings are the fields of a struct"));
    };
    let fields = data.fields.iter().map(field::read).collect::<Result<Vec<_>, _>>()?;
    let rules = data.fields.iter().map(field::rules).collect::<Result<Vec<_>, _>>()?;
    Ok(quote! {
        impl crate::settings::given::Settings for #name {
            fn read(
                given: &mut crate::settings::given::Given<'_>,
            ) -> ::std::result::Result<Self, crate::settings::given::Refused> {
                let settings = Self { #(#fields),* };
                #(#rules)*
                Ok(settings)
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use syn::parse_quote;

    use super::*;

    #[test]
    fn an_attribute_that_only_clap_knows_is_refused() {
        let refused = |input: DeriveInput| implementation(&input).unwrap_err().to_string();
        assert_eq!(
            refused(parse_quote!(
                struct S {
                    #[arg(long, value_delimiter = ',')]
                    a: Vec<u8>,
                }
            )),
            "leasehold-derive does not know this attribute"
        );
        assert_eq!(
            refused(parse_quote!(
                struct S {
                    #[arg(long)]
                    a: u8,
                }
            )),
            "a setting without a default is an Option"
        );
        assert_eq!(
            refused(parse_quote!(
                enum S {
                    A,
                }
            )),
            "settings are the fields of a struct"
        );
    }

    #[test]
    fn a_flag_has_the_name_of_its_field() {
        let input = parse_quote!(
            struct S {
                #[arg(long, value_parser = time)]
                max_duration: Option<Duration>,
            }
        );
        let code = implementation(&input).unwrap().to_string();
        assert!(code.contains(r#"given . last ("max-duration""#), "{code}");
    }
}
