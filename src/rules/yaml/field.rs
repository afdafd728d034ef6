//! What the types of [`file`](crate::rules::file) are made of: values with their places, and what can be written in short.

use std::fmt;

use serde::Deserialize;
use serde::de::{self, Deserializer, SeqAccess, Visitor};

use crate::rules::problem::Place;

/// What a type of [`file`](crate::rules::file) holds for a key: nothing, something that has been noted as wrong, or a value.
#[derive(Debug, Default)]
pub(in crate::rules) enum Field<T> {
    /// The key is not there, or says nothing.
    #[default]
    Absent,
    /// It is there, and what is wrong with it has been noted.
    Broken,
    /// It is there.
    Given(Place, T),
}

impl<T> Field<T> {
    pub(in crate::rules) fn get(&self) -> Option<&T> {
        match self {
            Self::Given(_, value) => Some(value),
            _ => None,
        }
    }

    pub(in crate::rules) fn place(&self) -> Option<Place> {
        match self {
            Self::Given(place, _) => Some(*place),
            _ => None,
        }
    }

    pub(in crate::rules) fn is_absent(&self) -> bool {
        matches!(self, Self::Absent)
    }
}

/// The name by which a [`Field`] asks the reader for line, column and value.
pub(super) const FIELD: &str = "weir::Field";

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Field<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Parts<T>(std::marker::PhantomData<T>);

        impl<'de, T: Deserialize<'de>> Visitor<'de> for Parts<T> {
            type Value = Field<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a value")
            }

            fn visit_unit<E>(self) -> Result<Self::Value, E> {
                Ok(Field::Absent)
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut parts: A) -> Result<Self::Value, A::Error> {
                let (Some(line), Some(column)) = (parts.next_element()?, parts.next_element()?) else {
                    return Ok(Field::Broken);
                };
                Ok(match parts.next_element() {
                    Ok(Some(value)) => Field::Given(Place { line, column }, value),
                    // The reader has noted it; the rest of the file is still worth reading.
                    Ok(None) | Err(_) => Field::Broken,
                })
            }
        }

        deserializer.deserialize_tuple_struct(FIELD, 3, Parts(std::marker::PhantomData))
    }
}

/// The name by which [`text_or`] asks the reader for a scalar's text, or else for all that stands there.
pub(super) const TEXT_OR: &str = "weir::TextOr";

/// What can also be written in short, as one scalar.
pub(in crate::rules) trait FromText<'de>: Sized {
    /// Reads the short form. The error is what is said of it.
    fn from_text(text: &str) -> Result<Self, String>;

    /// Reads the long form.
    fn from_whole<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error>;
}

/// Reads a `T` in either form.
pub(in crate::rules) fn text_or<'de, T: FromText<'de>, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<T, D::Error> {
    struct Forms<T>(std::marker::PhantomData<T>);

    impl<'de, T: FromText<'de>> Visitor<'de> for Forms<T> {
        type Value = T;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a value")
        }

        fn visit_str<E: de::Error>(self, text: &str) -> Result<T, E> {
            T::from_text(text).map_err(E::custom)
        }

        fn visit_newtype_struct<D: Deserializer<'de>>(self, deserializer: D) -> Result<T, D::Error> {
            T::from_whole(deserializer)
        }
    }

    deserializer.deserialize_newtype_struct(TEXT_OR, Forms(std::marker::PhantomData))
}
