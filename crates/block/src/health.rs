//! What can be seen of an image's health at a glance.

/// Something that ails an image, without keeping it from being opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Symptom {
    /// What it is a sign of.
    pub ailment: Ailment,
    /// A whole sentence, with numbers.
    pub text: String,
}

/// What can be wrong with an image as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Ailment {
    /// Something that its tables say stands in the file lies behind its end.
    Truncated,
    /// It was not closed properly.
    Dirty,
    /// Its tables break a rule, or somebody marked it as damaged.
    Corrupt,
    /// The file goes on behind everything that belongs to the image.
    Tail,
    /// Anything else that its format warns of.
    Warning,
}

impl Ailment {
    /// The word for it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Truncated => "truncated",
            Self::Dirty => "dirty",
            Self::Corrupt => "corrupt",
            Self::Tail => "unreferenced-tail",
            Self::Warning => "warning",
        }
    }

    /// A sign of it.
    pub fn sign(self, text: impl ToString) -> Symptom {
        Symptom {
            ailment: self,
            text: text.to_string(),
        }
    }
}
