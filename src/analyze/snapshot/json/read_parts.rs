//! Readers of one frame and of one scope, and the texts, frames and scopes that the traces of a file share.

use crate::analyze::frame::Frame;
use crate::analyze::scope::{Pair, ScopeLabels};
use serde::de::{self, DeserializeSeed, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;
use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::Arc;

/// Ways to read the frames of a trace.
#[derive(Clone, Copy, Default)]
pub(super) enum Frames {
    /// Looks the text of a frame up among those that were read before, as traces repeat the same frames. Needs the whole
    /// file in memory.
    ByText,
    #[default]
    ByMember,
}

/// Stores a member of an object; a second one of that name is an error.
pub(super) fn once<T, E: de::Error>(place: &mut Option<T>, value: T, name: &'static str) -> Result<(), E> {
    match place.replace(value) {
        Some(_) => Err(de::Error::duplicate_field(name)),
        None => Ok(()),
    }
}

pub(super) fn given<T, E: de::Error>(place: Option<T>, name: &'static str) -> Result<T, E> {
    place.ok_or_else(|| de::Error::missing_field(name))
}

struct OneFrame<'a, 'de>(&'a mut Shared<'de>);

#[derive(Deserialize)]
#[serde(field_identifier, rename_all = "snake_case")]
enum FrameMember {
    Function,
    File,
    Line,
    Module,
    Offset,
    #[serde(other)]
    Unknown,
}

impl<'de> DeserializeSeed<'de> for OneFrame<'_, 'de> {
    type Value = Arc<Frame>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Arc<Frame>, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for OneFrame<'_, 'de> {
    type Value = Arc<Frame>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a frame")
    }

    fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Arc<Frame>, M::Error> {
        let OneFrame(shared) = self;
        let (mut function, mut file, mut line, mut module, mut offset) = (None, None, None, None, None);
        while let Some(member) = map.next_key()? {
            match member {
                FrameMember::Function => {
                    once(&mut function, map.next_value_seed(MaybeText(shared))?, "function")?
                }
                FrameMember::File => once(&mut file, map.next_value_seed(Text(shared))?, "file")?,
                FrameMember::Line => once(&mut line, map.next_value()?, "line")?,
                FrameMember::Module => once(&mut module, map.next_value_seed(MaybeText(shared))?, "module")?,
                FrameMember::Offset => {
                    once::<Option<u64>, _>(&mut offset, map.next_value()?, "offset")?;
                }
                FrameMember::Unknown => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(shared.frame(Frame {
            function: function.flatten(),
            file: given(file, "file")?,
            line: given(line, "line")?,
            module: module.flatten(),
            offset: offset.flatten(),
        }))
    }
}

/// Reader of the scope of one trace, or null.
pub(super) struct OneScope<'a, 'de>(pub(super) &'a mut Shared<'de>);

impl<'de> DeserializeSeed<'de> for OneScope<'_, 'de> {
    type Value = ScopeLabels;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<ScopeLabels, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for OneScope<'_, 'de> {
    type Value = ScopeLabels;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a scope, keys with strings, or null")
    }

    fn visit_unit<E: de::Error>(self) -> Result<ScopeLabels, E> {
        Ok(ScopeLabels::default())
    }

    fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<ScopeLabels, M::Error> {
        let OneScope(shared) = self;
        let mut pairs: Vec<Pair> = Vec::new();
        while let Some(key) = map.next_key_seed(ScopeText(shared))? {
            let value = map.next_value_seed(ScopeText(shared))?;
            if pairs.iter().any(|(own, _)| *own == key) {
                return Err(de::Error::custom(format_args!("duplicate key `{key}` of a scope")));
            }
            pairs.push((key, value));
        }
        Ok(shared.scope(ScopeLabels::new(pairs)))
    }
}

/// Reader of a key or a value of a scope. They are printed as they are, so a control character becomes `?`, as in a program's scope.
struct ScopeText<'a, 'de>(&'a mut Shared<'de>);

impl<'de> DeserializeSeed<'de> for ScopeText<'_, 'de> {
    type Value = Arc<str>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Arc<str>, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl<'de> Visitor<'de> for ScopeText<'_, 'de> {
    type Value = Arc<str>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a scope, keys with strings, or null")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Arc<str>, E> {
        match text.contains(char::is_control) {
            true => Ok(self.0.text(&text.replace(char::is_control, "?"))),
            false => Ok(self.0.text(text)),
        }
    }
}

/// Reader of a text, kept once however often it occurs.
struct Text<'a, 'de>(&'a mut Shared<'de>);

impl<'de> DeserializeSeed<'de> for Text<'_, 'de> {
    type Value = Arc<str>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Arc<str>, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl<'de> Visitor<'de> for Text<'_, 'de> {
    type Value = Arc<str>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Arc<str>, E> {
        Ok(self.0.text(text))
    }
}

/// Reader of a text, or null.
struct MaybeText<'a, 'de>(&'a mut Shared<'de>);

impl<'de> DeserializeSeed<'de> for MaybeText<'_, 'de> {
    type Value = Option<Arc<str>>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Option<Arc<str>>, D::Error> {
        deserializer.deserialize_option(self)
    }
}

impl<'de> Visitor<'de> for MaybeText<'_, 'de> {
    type Value = Option<Arc<str>>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string or null")
    }

    fn visit_none<E: de::Error>(self) -> Result<Option<Arc<str>>, E> {
        Ok(None)
    }

    fn visit_unit<E: de::Error>(self) -> Result<Option<Arc<str>>, E> {
        Ok(None)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Option<Arc<str>>, D::Error> {
        Text(self.0).deserialize(deserializer).map(Some)
    }
}

/// Texts and frames that the traces of one file share.
#[derive(Default)]
pub(super) struct Shared<'de> {
    frames_are_read: Frames,
    texts: HashSet<Arc<str>>,
    frames: HashMap<FrameKey, Arc<Frame>>,
    /// Frames by the text they are written as.
    written: HashMap<&'de str, Arc<Frame>>,
    scopes: HashSet<ScopeLabels>,
    /// Frames of the trace that is being read.
    pub(super) traceback: Vec<Arc<Frame>>,
}

/// Key of a frame: the addresses of its texts. Each text is kept once, so equal texts have one address.
#[derive(PartialEq, Eq, Hash)]
struct FrameKey {
    function: Option<usize>,
    file: usize,
    line: u32,
    module: Option<usize>,
    offset: Option<u64>,
}

impl<'de> Shared<'de> {
    pub(super) fn new(frames_are_read: Frames) -> Shared<'de> {
        Shared { frames_are_read, ..Shared::default() }
    }

    /// Returns the equal frame that was read before, if there is one; the texts are from [`Shared::text`].
    fn frame(&mut self, frame: Frame) -> Arc<Frame> {
        if matches!(self.frames_are_read, Frames::ByText) {
            // Its text is kept instead.
            return Arc::new(frame);
        }
        let place = |text: &Arc<str>| text.as_ptr() as usize;
        let key = FrameKey {
            function: frame.function.as_ref().map(place),
            file: place(&frame.file),
            line: frame.line,
            module: frame.module.as_ref().map(place),
            offset: frame.offset,
        };
        self.frames.entry(key).or_insert_with(|| Arc::new(frame)).clone()
    }

    pub(super) fn next_frame<S: SeqAccess<'de>>(
        &mut self,
        frames: &mut S,
    ) -> Result<Option<Arc<Frame>>, S::Error> {
        match self.frames_are_read {
            Frames::ByMember => frames.next_element_seed(OneFrame(self)),
            Frames::ByText => match frames.next_element::<&'de RawValue>()? {
                Some(text) => self.frame_of(text.get()).map(Some).map_err(de::Error::custom),
                None => Ok(None),
            },
        }
    }

    /// Returns the frame that is written like this.
    fn frame_of(&mut self, text: &'de str) -> serde_json::Result<Arc<Frame>> {
        if let Some(frame) = self.written.get(text) {
            return Ok(frame.clone());
        }
        let frame = OneFrame(self).deserialize(&mut serde_json::Deserializer::from_str(text))?;
        self.written.insert(text, frame.clone());
        Ok(frame)
    }

    /// Returns the equal scope that was read before, if there is one.
    fn scope(&mut self, scope: ScopeLabels) -> ScopeLabels {
        if let Some(kept) = self.scopes.get(&scope) {
            return kept.clone();
        }
        self.scopes.insert(scope.clone());
        scope
    }

    fn text(&mut self, text: &str) -> Arc<str> {
        if let Some(kept) = self.texts.get(text) {
            return kept.clone();
        }
        let text: Arc<str> = text.into();
        self.texts.insert(text.clone());
        text
    }
}
