//! Unit properties from annotations `org.systemd.property.NAME`, whose values are written in GVariant's text form
//! (as `busctl` and runc read them): `true`, `'text'`, `uint64 5`, `['a', 'b']`, `@as []`.

use super::dbus::Value;

/// Parses one property. `TimeoutStopSec` and its like become `…USec`, in microseconds, as the bus names them. None: not a property.
pub(super) fn property(name: &str, text: &str) -> Option<(String, Value)> {
    let plain = name.len() >= 3 && name.bytes().all(|byte| byte.is_ascii_alphabetic());
    let value = parse(text).filter(|_| plain)?;
    match name.strip_suffix("Sec") {
        Some(stem) if stem.ends_with(|last: char| last.is_ascii_lowercase()) => {
            Some((format!("{stem}USec"), Value::Uint64(microseconds(&value)?)))
        }
        _ => Some((name.to_owned(), value)),
    }
}

fn microseconds(value: &Value) -> Option<u64> {
    const MILLION: u64 = 1_000_000;
    match value {
        Value::Byte(seconds) => Some(u64::from(*seconds) * MILLION),
        Value::Int32(seconds) => u64::try_from(*seconds).ok()?.checked_mul(MILLION),
        Value::Uint32(seconds) => Some(u64::from(*seconds) * MILLION),
        Value::Int64(seconds) => u64::try_from(*seconds).ok()?.checked_mul(MILLION),
        Value::Uint64(seconds) => seconds.checked_mul(MILLION),
        Value::Double(seconds) => {
            let duration = std::time::Duration::try_from_secs_f64(*seconds).ok()?;
            u64::try_from(duration.as_micros()).ok()
        }
        _ => None,
    }
}

fn parse(text: &str) -> Option<Value> {
    let mut rest = text.trim();
    let value = value(&mut rest, None)?;
    rest.trim().is_empty().then_some(value)
}

/// `wanted`: the type that a keyword or `@` before it asked for.
fn value(rest: &mut &str, wanted: Option<&str>) -> Option<Value> {
    *rest = rest.trim_start();
    let first = rest.chars().next()?;
    match first {
        '\'' | '"' => string(rest, first).map(|text| match wanted {
            Some("o") => Value::Path(text),
            Some("g") => Value::Signature(text),
            _ => Value::String(text),
        }),
        '[' => array(rest, wanted),
        '@' => {
            let (signature, after) = rest[1..].split_once(' ')?;
            *rest = after;
            value(rest, Some(signature))
        }
        '0'..='9' | '-' | '+' | '.' => number(token(rest), wanted.unwrap_or("")),
        _ => {
            let word = token(rest);
            let signature = match word {
                "true" => return Some(Value::Bool(true)),
                "false" => return Some(Value::Bool(false)),
                "byte" => "y",
                "int32" => "i",
                "uint32" => "u",
                "int64" => "x",
                "uint64" => "t",
                "double" => "d",
                "string" => "s",
                "objectpath" => "o",
                "signature" => "g",
                _ => return None,
            };
            value(rest, Some(signature))
        }
    }
}

fn array(rest: &mut &str, wanted: Option<&str>) -> Option<Value> {
    let element = wanted.map(|signature| signature.strip_prefix('a')).map_or(Some(None), |s| s.map(Some))?;
    *rest = rest[1..].trim_start();
    let mut items: Vec<Value> = Vec::new();
    while !rest.starts_with(']') {
        if !items.is_empty() {
            *rest = rest.strip_prefix(',')?;
        }
        items.push(value(rest, element)?);
        *rest = rest.trim_start();
    }
    *rest = &rest[1..];
    let signature = element.map(str::to_owned).or_else(|| items.first().map(Value::signature))?;
    items.iter().all(|item| item.signature() == signature).then_some(Value::Array(signature, items))
}

/// Without a keyword: an integer is an `int32`, a number with a point a double.
fn number(word: &str, wanted: &str) -> Option<Value> {
    Some(match wanted {
        "y" => Value::Byte(word.parse().ok()?),
        "u" => Value::Uint32(word.parse().ok()?),
        "x" => Value::Int64(word.parse().ok()?),
        "t" => Value::Uint64(word.parse().ok()?),
        "d" => Value::Double(word.parse().ok()?),
        "" if word.contains(['.', 'e']) => Value::Double(word.parse().ok()?),
        "i" | "" => Value::Int32(word.parse().ok()?),
        _ => return None,
    })
}

/// Up to the next separator.
fn token<'a>(rest: &mut &'a str) -> &'a str {
    let end = rest.find([' ', ',', ']']).unwrap_or(rest.len());
    let (word, after) = rest.split_at(end);
    *rest = after;
    word
}

fn string(rest: &mut &str, quote: char) -> Option<String> {
    let mut text = String::new();
    let mut characters = rest.char_indices().skip(1);
    while let Some((at, character)) = characters.next() {
        match character {
            '\\' => text.push(match characters.next()?.1 {
                'n' => '\n',
                't' => '\t',
                other => other,
            }),
            _ if character == quote => {
                *rest = &rest[at + 1..];
                return Some(text);
            }
            '\0' => return None,
            _ => text.push(character),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_as_people_write_them() {
        let cases = [
            ("true", Some(Value::Bool(true))),
            ("'inactive-or-failed'", Some(Value::text("inactive-or-failed"))),
            ("\"a\\'b\"", Some(Value::text("a'b"))),
            ("uint64 123456789", Some(Value::Uint64(123_456_789))),
            ("-5", Some(Value::Int32(-5))),
            ("1.5", Some(Value::Double(1.5))),
            ("['a', 'b']", Some(Value::texts(["a".to_owned(), "b".to_owned()]))),
            ("@as []", Some(Value::texts([]))),
            ("@at [1, 2]", Some(Value::Array("t".to_owned(), vec![Value::Uint64(1), Value::Uint64(2)]))),
            ("[]", None),
            ("['a', 1]", None),
            ("uint64 -1", None),
            ("'open", None),
            ("true false", None),
            ("nonsense", None),
            ("", None),
        ];
        for (text, expected) in cases {
            assert_eq!(parse(text), expected, "{text}");
        }
    }

    #[test]
    fn seconds_become_microseconds() {
        assert_eq!(
            property("TimeoutStopSec", "5"),
            Some(("TimeoutStopUSec".into(), Value::Uint64(5_000_000)))
        );
        assert_eq!(
            property("TimeoutStopSec", "0.5"),
            Some(("TimeoutStopUSec".into(), Value::Uint64(500_000)))
        );
        assert_eq!(property("CPUQuotaPerSec", "'x'"), None);
        assert_eq!(property("Sec", "5"), Some(("Sec".into(), Value::Int32(5))));
        assert_eq!(property("a=b", "5"), None);
    }
}
