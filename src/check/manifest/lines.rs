//! The line of each field of an object.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_saphyr::Spanned;

/// The line of a value, and the lines below it: fields by name, items as `[0]`, `[1]` and so on.
#[derive(Debug, Default, Clone, PartialEq)]
pub struct Lines {
    line: Option<u64>,
    below: BTreeMap<String, Lines>,
}

impl Lines {
    /// The line of the field at `path`, such as `spec.triggers[0].metadata`; if it does not exist,
    /// the line of the nearest value around it.
    pub fn of(&self, path: &str) -> Option<u64> {
        let (mut here, mut rest) = (self, path);
        let mut line = self.line;
        while !rest.is_empty() {
            // One name in a ConfigMap can be the prefix of another.
            let is_next = |name: &str| {
                rest.strip_prefix(name)
                    .is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
            };
            let Some((name, next)) = here.below.iter().rfind(|(name, _)| is_next(name)) else {
                break;
            };
            rest = &rest[name.len()..];
            rest = rest.strip_prefix('.').unwrap_or(rest);
            here = next;
            line = next.line.or(line);
        }
        line
    }

    /// The lines of an item of a list.
    #[must_use]
    pub fn item(&self, number: usize) -> Self {
        let items = self.below.get("items");
        items.and_then(|items| items.below.get(&format!("[{number}]"))).cloned().unwrap_or_default()
    }
}

impl<'de> Deserialize<'de> for Lines {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(AnyValue)
    }
}

struct AnyValue;

impl<'de> Visitor<'de> for AnyValue {
    type Value = Lines;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any value")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Lines, A::Error> {
        let mut all = Lines::default();
        while let Some(name) = map.next_key::<Spanned<String>>()? {
            let below: Lines = map.next_value()?;
            let line = Some(name.referenced.line());
            all.line = all.line.or(line);
            all.below.insert(name.value, Lines { line, ..below });
        }
        Ok(all)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Lines, A::Error> {
        let mut all = Lines::default();
        while let Some(item) = seq.next_element::<Spanned<Lines>>()? {
            let line = Some(item.referenced.line());
            all.below.insert(format!("[{}]", all.below.len()), Lines { line, ..item.value });
        }
        Ok(all)
    }

    fn visit_bool<E>(self, _: bool) -> Result<Lines, E> {
        Ok(Lines::default())
    }

    fn visit_i64<E>(self, _: i64) -> Result<Lines, E> {
        Ok(Lines::default())
    }

    fn visit_u64<E>(self, _: u64) -> Result<Lines, E> {
        Ok(Lines::default())
    }

    fn visit_f64<E>(self, _: f64) -> Result<Lines, E> {
        Ok(Lines::default())
    }

    fn visit_str<E>(self, _: &str) -> Result<Lines, E> {
        Ok(Lines::default())
    }

    fn visit_unit<E>(self) -> Result<Lines, E> {
        Ok(Lines::default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_field_has_its_line() {
        let text = "# a comment\nkind: X\nmetadata:\n  name: y\n  labels: {a: b,\n    a.b: c}\nspec:\n  items:\n  - name: one\n    \
                    value: 1\n  -\n    name: two\n  more: &x\n    on: true\n  again: *x\n  'null': ~\n---\nkind: Y\n";
        let all: Vec<Lines> = serde_saphyr::from_multiple(text).unwrap();
        for (path, line) in [
            ("", 2),
            ("kind", 2),
            ("metadata", 3),
            ("metadata.name", 4),
            ("metadata.labels.a", 5),
            ("metadata.labels.a.b", 6),
            ("spec.items", 8),
            ("spec.items[0]", 9),
            ("spec.items[0].value", 10),
            ("spec.items[1].name", 12),
            ("spec.more.on", 14),
            ("spec.again", 15),
            // A missing field has the line of the value around it.
            ("spec.items[1].value", 12),
            ("spec.items[7]", 8),
            ("spec.rollout.strategy", 7),
            ("status", 2),
        ] {
            assert_eq!(all[0].of(path), Some(line), "{path}");
        }
        assert_eq!(all[1].of("kind"), Some(18));
        assert_eq!(Lines::default().of("kind"), None);
    }
}
