//! Alters what the right server said, to prove that a difference is noticed.

use crate::compare::Order;
use crate::item::{Item, Value};

/// Alters one thing in `items` and returns what. `None` if there was nothing to alter.
pub(crate) fn alter(
    items: &mut Vec<Item>,
    order: Order,
    rng: &mut fastrand::Rng,
) -> Option<String> {
    if items.is_empty() {
        return None;
    }
    let index = rng.usize(..items.len());
    match rng.u32(..10) {
        0 => {
            items.remove(index);
            Some(format!("item {index} dropped"))
        }
        1 => {
            items.insert(index, items[index].clone());
            Some(format!("item {index} sent twice"))
        }
        2 if order == Order::Strict
            && index + 1 < items.len()
            && items[index].fields != items[index + 1].fields =>
        {
            items.swap(index, index + 1);
            Some(format!("items {index} and {} exchanged", index + 1))
        }
        _ => {
            let fields = &mut items[index].fields;
            if fields.is_empty() {
                return None;
            }
            let chosen = rng.usize(..fields.len());
            let field = &mut fields[chosen];
            let before = field.value.to_string();
            alter_value(&mut field.value, rng);
            Some(format!("item {index}: {} {before} to {}", field.name, field.value))
        }
    }
}

fn alter_value(value: &mut Value, rng: &mut fastrand::Rng) {
    match value {
        Value::Number(number)
        | Value::Zxid(number)
        | Value::LastZxid(number)
        | Value::Session(number) => {
            *number ^= 1 << rng.u32(..5);
        }
        // This is a write that was before anything.
        Value::EventZxid(zxid) => *zxid = 0,
        Value::Time { ms, .. } => *ms ^= 1 << rng.u32(..5),
        Value::Bytes(bytes) => match bytes {
            Some(text) if text.is_empty() => *bytes = None,
            Some(text) => {
                let index = rng.usize(..text.len());
                text[index] ^= 1;
            }
            None => *bytes = Some(Vec::new()),
        },
        Value::Names(names) => {
            if names.pop().is_none() {
                names.push(b"x".to_vec());
            }
        }
        Value::Acl(entries) => match entries.first_mut() {
            Some(entry) => entry.0 ^= 1,
            None => entries.push((31, "world".into(), "anyone".into())),
        },
    }
}
