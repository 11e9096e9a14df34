//! JSON in visible ASCII characters: what an image calls its things cannot mislead on a terminal, and is
//! understood in any locale.

use std::io::{Result, Write};

use serde_json::ser::{CharEscape, CompactFormatter, Formatter, PrettyFormatter};

/// Lays out as its part does, and escapes all characters that are not visible ones of ASCII. [qemu]
pub(super) struct Plain<F>(F);

/// Bytes that are written together. A stranger's image may be called by millions of characters.
const PIECE: usize = 4096;

/// Appends the escape for a unit of UTF-16.
fn escape(unit: u16, told: &mut Vec<u8>) {
    let digit = |shift: u32| b"0123456789ABCDEF"[usize::from(unit >> shift & 0xf)];
    told.extend([b'\\', b'u', digit(12), digit(8), digit(4), digit(0)]);
}

impl Plain<PrettyFormatter<'static>> {
    /// As qemu-img lays it out.
    pub(super) fn pretty() -> Self {
        Self(PrettyFormatter::with_indent(b"    "))
    }
}

impl Plain<CompactFormatter> {
    /// On one line.
    pub(super) fn compact() -> Self {
        Self(CompactFormatter)
    }
}

impl<F: Formatter> Formatter for Plain<F> {
    fn write_string_fragment<W: ?Sized + Write>(&mut self, out: &mut W, text: &str) -> Result<()> {
        let mut told = Vec::new();
        for c in text.chars() {
            match c {
                ' '..='~' => told.push(c as u8),
                _ => c
                    .encode_utf16(&mut [0; 2])
                    .iter()
                    .for_each(|unit| escape(*unit, &mut told)),
            }
            if told.len() >= PIECE {
                out.write_all(&told)?;
                told.clear();
            }
        }
        out.write_all(&told)
    }

    fn write_char_escape<W: ?Sized + Write>(
        &mut self,
        out: &mut W,
        char_escape: CharEscape,
    ) -> Result<()> {
        match char_escape {
            CharEscape::AsciiControl(byte) => {
                self.write_string_fragment(out, char::from(byte).encode_utf8(&mut [0; 4]))
            }
            other => self.0.write_char_escape(out, other),
        }
    }

    fn begin_array<W: ?Sized + Write>(&mut self, out: &mut W) -> Result<()> {
        self.0.begin_array(out)
    }

    fn end_array<W: ?Sized + Write>(&mut self, out: &mut W) -> Result<()> {
        self.0.end_array(out)
    }

    fn begin_array_value<W: ?Sized + Write>(&mut self, out: &mut W, first: bool) -> Result<()> {
        self.0.begin_array_value(out, first)
    }

    fn end_array_value<W: ?Sized + Write>(&mut self, out: &mut W) -> Result<()> {
        self.0.end_array_value(out)
    }

    fn begin_object<W: ?Sized + Write>(&mut self, out: &mut W) -> Result<()> {
        self.0.begin_object(out)
    }

    fn end_object<W: ?Sized + Write>(&mut self, out: &mut W) -> Result<()> {
        self.0.end_object(out)
    }

    fn begin_object_key<W: ?Sized + Write>(&mut self, out: &mut W, first: bool) -> Result<()> {
        self.0.begin_object_key(out, first)
    }

    fn begin_object_value<W: ?Sized + Write>(&mut self, out: &mut W) -> Result<()> {
        self.0.begin_object_value(out)
    }

    fn end_object_value<W: ?Sized + Write>(&mut self, out: &mut W) -> Result<()> {
        self.0.end_object_value(out)
    }
}

#[cfg(test)]
mod tests {
    use serde::Serialize;

    use super::*;

    #[test]
    fn text_is_told_in_visible_characters_as_by_qemu() {
        let text = "a\"b\\c\n\u{1b}\u{7f}\u{9b}é\u{202e}𝄞~";
        let mut out = Vec::new();
        let mut serializer = serde_json::Serializer::with_formatter(&mut out, Plain::compact());
        text.serialize(&mut serializer).unwrap();
        let told = r#""a\"b\\c\n\u001B\u007F\u009B\u00E9\u202E\uD834\uDD1E~""#;
        assert_eq!(String::from_utf8(out).unwrap(), told);
        let long = "é".repeat(10_000);
        let mut out = Vec::new();
        let mut serializer = serde_json::Serializer::with_formatter(&mut out, Plain::compact());
        long.serialize(&mut serializer).unwrap();
        assert_eq!(serde_json::from_slice::<String>(&out).unwrap(), long);
    }
}
