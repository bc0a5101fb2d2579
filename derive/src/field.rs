//! One field: its attributes, and the code that reads its value.

use proc_macro2::TokenStream;
use quote::{ToTokens, quote};
use syn::parse::{Parse, ParseStream};
use syn::punctuated::Punctuated;
use syn::{Error, Expr, ExprLit, Field, GenericArgument, Ident, Lit, PathArguments, Token, Type};

/// `long`, or `default_value = "2m"`.
struct Attribute {
    name: Ident,
    value: Option<Expr>,
}

impl Parse for Attribute {
    fn parse(input: ParseStream<'_>) -> syn::Result<Self> {
        let name = input.parse()?;
        let value = match input.parse::<Option<Token![=]>>()? {
            Some(_) => Some(input.parse()?),
            None => None,
        };
        Ok(Self { name, value })
    }
}

/// Attributes that say nothing about a value in code.
const OF_THE_COMMAND_LINE: [&str; 12] = [
    "action",
    "default_missing_value",
    "help_heading",
    "hide_default_value",
    "hide_short_help",
    "last",
    "num_args",
    "required",
    "required_unless_present_any",
    "short",
    "skip",
    "value_name",
];

/// Where a field's value comes from.
#[derive(Default, PartialEq)]
enum Source {
    /// A flag of this name.
    Flag,
    /// The fields of its own type.
    Flattened,
    /// Neither: a word of the command line without a flag, or a skipped field.
    #[default]
    Elsewhere,
}

/// What the attributes say about the value.
#[derive(Default)]
struct Declared {
    source: Source,
    is_choice: bool,
    parser: Option<Expr>,
    /// As a text.
    default: Option<Expr>,
    /// As a value.
    default_value: Option<TokenStream>,
    /// The fields that must be set, too.
    requires: Vec<Expr>,
    /// The fields that must not be set, too.
    conflicts: Vec<Expr>,
}

impl Declared {
    fn of(field: &Field) -> Result<Self, Error> {
        let mut declared = Self::default();
        for attribute in &field.attrs {
            if attribute.path().is_ident("arg") || attribute.path().is_ident("command") {
                let list = Punctuated::<Attribute, Token![,]>::parse_terminated;
                for one in attribute.parse_args_with(list)? {
                    declared.add(one)?;
                }
            }
        }
        Ok(declared)
    }

    fn add(&mut self, Attribute { name, value }: Attribute) -> Result<(), Error> {
        match (&*name.to_string(), value) {
            ("long", None) => self.source = Source::Flag,
            ("flatten", None) => self.source = Source::Flattened,
            ("value_enum", None) => self.is_choice = true,
            ("value_parser", parser @ Some(_)) => self.parser = parser,
            ("default_value", default @ Some(_)) => self.default = default,
            ("default_value_t" | "default_value_os_t", Some(default)) => {
                self.default_value = Some(default.to_token_stream());
            }
            ("default_value_t", None) => {
                self.default_value = Some(quote!(::std::default::Default::default()));
            }
            ("requires", Some(other)) => self.requires.push(other),
            ("conflicts_with", Some(other)) => self.conflicts.push(other),
            (other, _) if OF_THE_COMMAND_LINE.contains(&other) => {}
            _ => {
                let why = "leasehold-derive does not know this attribute";
                return Err(Error::new_spanned(name, why));
            }
        }
        Ok(())
    }
}

/// `name: value`, where the expression takes the value from `given`.
pub fn read(field: &Field) -> Result<TokenStream, Error> {
    let name = &field.ident;
    let declared = Declared::of(field)?;
    let value = value(field, &declared)?;
    Ok(quote!(#name: #value))
}

fn value(field: &Field, declared: &Declared) -> Result<TokenStream, Error> {
    let Field { ty, ident, .. } = field;
    match declared.source {
        Source::Flag => {}
        Source::Flattened => return Ok(quote!(crate::settings::given::Settings::read(given)?)),
        Source::Elsewhere => return Ok(quote!(::std::default::Default::default())),
    }
    let flag = flag(ident.as_ref());
    let none = || quote!(::std::option::Option::None);
    let some = |text| quote!(::std::option::Option::Some(#text));
    let default = declared.default.as_ref().map_or_else(none, some);
    let given = |ty: &Type| {
        if is(ty, "PathBuf") && declared.parser.is_none() {
            return quote!(given.path(#flag)?);
        }
        // clap's own parser of a switch.
        if is(ty, "bool") && matches!(declared.parser, Some(Expr::Call(_))) {
            return quote!(given.switch(#flag, #default)?);
        }
        let parser = parser(ty, declared);
        quote!(given.last(#flag, #default, #parser)?)
    };
    if let Some(inner) = inside(ty, "Vec") {
        let parser = parser(inner, declared);
        return Ok(quote!(given.all(#flag, #default, #parser)?));
    }
    if let Some(inner) = inside(ty, "Option") {
        return Ok(given(inner));
    }
    let value = given(ty);
    Ok(match (&declared.default_value, &declared.default) {
        (Some(default), _) => quote!(#value.unwrap_or_else(|| #default)),
        (None, Some(_)) => quote!(#value.expect("it has a default")),
        (None, None) if is(ty, "bool") => quote!(#value.unwrap_or_default()),
        (None, None) => {
            return Err(Error::new_spanned(ty, "a setting without a default is an Option"));
        }
    })
}

/// A function from the text to the value.
fn parser(ty: &Type, declared: &Declared) -> TokenStream {
    match &declared.parser {
        Some(function) => function.to_token_stream(),
        None if declared.is_choice => quote!(crate::settings::given::choice),
        None => quote!(<#ty as ::std::str::FromStr>::from_str),
    }
}

/// The rules that include other fields.
pub fn rules(field: &Field) -> Result<TokenStream, Error> {
    let Declared { requires, conflicts, .. } = Declared::of(field)?;
    let flag = flag(field.ident.as_ref());
    let other = |id: &Expr| {
        if let Expr::Lit(ExprLit { lit: Lit::Str(id), .. }) = id {
            return Ok(id.value().replace('_', "-"));
        }
        Err(Error::new_spanned(id, "write the name of a field as a text"))
    };
    let requires = requires.iter().map(other).collect::<Result<Vec<_>, _>>()?;
    let conflicts = conflicts.iter().map(other).collect::<Result<Vec<_>, _>>()?;
    Ok(quote! {
        #(given.requires(#flag, #requires)?;)*
        #(given.conflicts(#flag, #conflicts)?;)*
    })
}

/// The name that clap derives from a field's name.
fn flag(field: Option<&Ident>) -> String {
    field.map(ToString::to_string).unwrap_or_default().trim_start_matches("r#").replace('_', "-")
}

fn is(ty: &Type, name: &str) -> bool {
    matches!(ty, Type::Path(path) if path.path.is_ident(name))
}

/// `T` of `Option<T>`.
fn inside<'a>(ty: &'a Type, name: &str) -> Option<&'a Type> {
    let Type::Path(path) = ty else { return None };
    let last = path.path.segments.last().filter(|last| last.ident == name)?;
    let PathArguments::AngleBracketed(arguments) = &last.arguments else { return None };
    arguments.args.iter().find_map(|argument| {
        let GenericArgument::Type(ty) = argument else { return None };
        Some(ty)
    })
}
