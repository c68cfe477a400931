//! Parsers of what an API server says.

use crate::{
    frames::{FrameKind, Frames},
    list_splitter::{ListSplitter, Piece, SplitError},
    objects::NodeView,
    watch::{self, WatchEvent},
};

/// Takes the answer to a list apart, and returns its items if it is whole.
pub fn list(bytes: &[u8], chunk: usize) -> Option<Vec<Vec<u8>>> {
    let (mut splitter, mut items) = (ListSplitter::new(64 * 1024), Vec::new());
    for chunk in bytes.chunks(chunk.max(1)) {
        let pushed = splitter.push::<SplitError>(chunk, |piece| {
            if let Piece::Item(item) = piece {
                items.push(item.to_vec());
            }
            Ok(())
        });
        pushed.ok()?;
    }
    splitter.is_complete().then_some(items)
}

/// Takes a watch's stream apart, and returns the nodes in it.
pub fn watch(bytes: &[u8], chunk: usize, is_protobuf: bool) -> Vec<String> {
    let kind = if is_protobuf { FrameKind::Protobuf } else { FrameKind::Json };
    let (mut frames, mut names) = (Frames::new(kind, 64 * 1024), Vec::new());
    let mut json = String::new();
    for chunk in bytes.chunks(chunk.max(1)) {
        if frames.push(chunk).is_err() {
            break;
        }
        while let Some(frame) = frames.next() {
            if let Ok(WatchEvent::Upserted(object) | WatchEvent::Deleted(object)) =
                watch::parse(kind, frame, &mut json)
                && let Ok(node) = NodeView::without_status(object)
            {
                names.push(node.metadata.name.into_owned());
            }
        }
    }
    names
}
