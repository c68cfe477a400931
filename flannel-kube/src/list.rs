//! Reading all objects of a kind.

use serde::Deserialize;

use crate::{
    Client, RequestError, Resource, Verb,
    client::{Call, LONGEST_OBJECT, QUIET_LIMIT},
    error::Reason,
    list_splitter::{ListSplitter, Piece, SplitError},
};

/// `metav1.ListMeta`.
#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct ListMeta {
    resource_version: String,
    #[serde(rename = "continue")]
    next: String,
}

impl Client {
    /// Reads all objects, in pages of so many, and hands each to `each` as its JSON. Returns their version.
    ///
    /// # Errors
    ///
    /// [`RequestError`]. Some objects may have been handed over before.
    pub async fn list(
        &self,
        resource: &Resource,
        page: u32,
        mut each: impl FnMut(&str),
    ) -> Result<String, RequestError> {
        let (page, mut meta) = (page.to_string(), ListMeta::default());
        loop {
            let mut query = vec![("limit", page.as_str())];
            if !meta.next.is_empty() {
                query.push(("continue", &meta.next));
            }
            let mut answer = self.open(Call::all(resource, Verb::List, &query)).await?;
            meta = ListMeta::default();
            let mut splitter = ListSplitter::new(LONGEST_OBJECT);
            while let Some(bytes) = answer.chunk(QUIET_LIMIT).await? {
                let pushed = splitter.push(&bytes, |piece| {
                    match piece {
                        Piece::Item(item) => match str::from_utf8(item) {
                            Ok(item) => each(item),
                            Err(error) => {
                                return Err(Reason::Decode(serde::de::Error::custom(error)));
                            }
                        },
                        Piece::Member(br#""metadata""#, value) => {
                            meta = serde_json::from_slice(value).map_err(Reason::Decode)?;
                        }
                        Piece::Member(..) => {}
                    }
                    Ok(())
                });
                pushed.map_err(|reason| answer.failed(reason))?;
            }
            if !splitter.is_complete() || meta.resource_version.is_empty() {
                let early = serde::de::Error::custom("it is no list, or not a whole one");
                return Err(answer.failed(Reason::Decode(early)));
            }
            answer.finish();
            if meta.next.is_empty() {
                return Ok(meta.resource_version);
            }
        }
    }
}

impl From<SplitError> for Reason {
    fn from(error: SplitError) -> Self {
        match error {
            SplitError::Malformed => Self::Decode(serde::de::Error::custom("it is no JSON list")),
            SplitError::Oversized => Self::Oversized { limit: LONGEST_OBJECT },
        }
    }
}
