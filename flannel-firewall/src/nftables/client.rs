//! Asks the kernel what there is, and has it changed.

use flannel_netlink::{
    Attribute, Connection, KernelError, Message, Namespace, OpenError, Request, netfilter_header,
    push_text,
};

use super::{
    Batch, Expression, Family, Hook, Verdict,
    batch::USERDATA_TAG,
    uapi::{
        HEADER, NFNL_SUBSYS_NFTABLES, NFT_MSG_GETCHAIN, NFT_MSG_GETGEN, NFT_MSG_GETRULE,
        NFT_MSG_GETSETELEM, NFT_MSG_GETTABLE, NFT_SET_ELEM_CATCHALL, NFT_SET_ELEM_INTERVAL_END,
        NFTA_CHAIN_HOOK, NFTA_CHAIN_NAME, NFTA_CHAIN_POLICY, NFTA_CHAIN_TABLE, NFTA_CHAIN_TYPE,
        NFTA_DATA_VALUE, NFTA_GEN_ID, NFTA_HOOK_HOOKNUM, NFTA_HOOK_PRIORITY, NFTA_RULE_CHAIN,
        NFTA_RULE_EXPRESSIONS, NFTA_RULE_HANDLE, NFTA_RULE_TABLE, NFTA_RULE_USERDATA,
        NFTA_SET_ELEM_DATA, NFTA_SET_ELEM_FLAGS, NFTA_SET_ELEM_KEY, NFTA_SET_ELEM_KEY_END,
        NFTA_SET_ELEM_LIST_ELEMENTS, NFTA_SET_ELEM_LIST_SET, NFTA_SET_ELEM_LIST_TABLE,
        NFTA_TABLE_FLAGS, NFTA_TABLE_NAME, NFTA_TABLE_USE, message_type,
    },
};

/// A socket to the nf_tables of one namespace.
///
/// # Errors
///
/// All methods return what the kernel said, and `EAGAIN` when what is listed keeps changing.
///
/// # Cancel safety
///
/// Dropping a future loses the answer only; a batch is done as a whole or not at all.
#[derive(Debug)]
pub struct Client {
    connection: Connection,
}

/// A table.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[non_exhaustive]
pub struct TableInfo {
    /// `NFT_TABLE_F_*`; a dormant table has no effect.
    pub flags: u32,
    /// How many chains, sets and other objects it has.
    pub members: u32,
}

/// A chain with where it is.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub struct ChainInfo {
    /// The table's family.
    pub family: Family,
    /// The table.
    pub table: String,
    /// The chain.
    pub name: String,
    /// `None` for chains that only others lead to.
    pub hook: Option<Hook>,
    /// Whether packets that no rule decides about are dropped.
    pub drops: bool,
}

/// A rule with where it is.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub struct RuleInfo {
    /// The chain.
    pub chain: String,
    /// The kernel's number for it.
    pub handle: u64,
    /// What it is made of.
    pub expressions: Vec<Expression>,
    /// What nft shows as its comment.
    pub comment: Option<String>,
    /// What [`Batch::add_tagged_rule`] keeps with it.
    pub tag: Option<String>,
}

impl RuleInfo {
    /// What iptables-nft shows as its comment: that of a match, or else what nft shows.
    pub fn iptables_comment(&self) -> Option<&str> {
        let matched = self.expressions.iter().find_map(|expression| match expression {
            Expression::Comment(text) => Some(&**text),
            _ => None,
        });
        matched.or(self.comment.as_deref())
    }

    /// The chain that the rule leads to.
    pub fn target(&self) -> Option<&str> {
        self.expressions.iter().find_map(|expression| match expression {
            Expression::Verdict(Verdict::Goto(chain) | Verdict::Jump(chain)) => Some(&**chain),
            _ => None,
        })
    }
}

/// An element of a set or of a map.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
#[non_exhaustive]
pub struct SetElement {
    /// The key as it is in registers; `None` for the element that fits whatever no other fits.
    pub key: Option<Vec<u8>>,
    /// Where a range of concatenated keys ends, itself included.
    pub key_end: Option<Vec<u8>>,
    /// Whether it is where a range ends, itself not included: ranges of plain keys are two elements.
    pub ends_range: bool,
    /// What a verdict map does with it.
    pub verdict: Option<Verdict>,
}

impl Client {
    /// Opens the socket inside of `namespace`. Needs a tokio runtime with I/O. A kernel without nf_tables says so when it is asked.
    ///
    /// # Errors
    ///
    /// When the namespace cannot be entered or the socket cannot be made.
    pub fn open(namespace: &Namespace) -> Result<Self, OpenError> {
        Ok(Self { connection: Connection::open_netfilter(namespace)? })
    }

    /// This socket's address on netlink, which no other socket of the namespace has.
    pub const fn port(&self) -> u32 {
        self.connection.port()
    }

    /// A table; `None` if it is not there.
    pub async fn table(
        &mut self,
        family: Family,
        table: &str,
    ) -> Result<Option<TableInfo>, KernelError> {
        let request = request(NFT_MSG_GETTABLE, family, &[(NFTA_TABLE_NAME, table)]);
        let read = |message: &Message<'_>| {
            let get = |kind| find(message, kind).and_then(|value| value.u32_be());
            // What cannot be read is not what anybody wants.
            let flags = get(NFTA_TABLE_FLAGS).unwrap_or(u32::MAX);
            Some(TableInfo { flags, members: get(NFTA_TABLE_USE).unwrap_or(u32::MAX) })
        };
        match self.connection.get(&request, read).await {
            Err(error) if error.not_found() => Ok(None),
            result => result.map(Some),
        }
    }

    /// The chains of all tables of all families, without their rules.
    pub async fn chains(&mut self) -> Result<Vec<ChainInfo>, KernelError> {
        let request = request(NFT_MSG_GETCHAIN, Family(0), &[]);
        self.connection.dump(&request, read_chain).await
    }

    /// Whether this chain is there.
    pub async fn has_chain(
        &mut self,
        family: Family,
        table: &str,
        chain: &str,
    ) -> Result<bool, KernelError> {
        let names = [(NFTA_CHAIN_TABLE, table), (NFTA_CHAIN_NAME, chain)];
        let request = request(NFT_MSG_GETCHAIN, family, &names);
        match self.connection.get(&request, |_| Some(())).await {
            Err(error) if error.not_found() => Ok(false),
            result => result.map(|()| true),
        }
    }

    /// The rules of one table, in their order; none if it is not there.
    pub async fn rules(
        &mut self,
        family: Family,
        table: &str,
    ) -> Result<Vec<RuleInfo>, KernelError> {
        let request = request(NFT_MSG_GETRULE, family, &[(NFTA_RULE_TABLE, table)]);
        self.listed_rules(&request, |message| read_rule(message, table)).await
    }

    /// The rules of one chain, in their order; none if it is not there.
    pub async fn chain_rules(
        &mut self,
        family: Family,
        table: &str,
        chain: &str,
    ) -> Result<Vec<RuleInfo>, KernelError> {
        let names = [(NFTA_RULE_TABLE, table), (NFTA_RULE_CHAIN, chain)];
        let request = request(NFT_MSG_GETRULE, family, &names);
        // As the table, old kernels leave the chain out of account.
        let read = |message: &Message<'_>| read_rule(message, table).filter(|it| it.chain == chain);
        self.listed_rules(&request, read).await
    }

    async fn listed_rules(
        &mut self,
        request: &Request,
        read: impl FnMut(&Message<'_>) -> Option<RuleInfo>,
    ) -> Result<Vec<RuleInfo>, KernelError> {
        match self.connection.dump(request, read).await {
            Err(error) if error.not_found() => Ok(Vec::new()),
            result => result,
        }
    }

    /// The elements of one set or map; none if it is not there.
    pub async fn set_elements(
        &mut self,
        family: Family,
        table: &str,
        set: &str,
    ) -> Result<Vec<SetElement>, KernelError> {
        let names = [(NFTA_SET_ELEM_LIST_TABLE, table), (NFTA_SET_ELEM_LIST_SET, set)];
        let request = request(NFT_MSG_GETSETELEM, family, &names);
        let read = |message: &Message<'_>| {
            let list = find(message, NFTA_SET_ELEM_LIST_ELEMENTS)?;
            Some(list.nested().map(read_element).collect::<Vec<_>>())
        };
        match self.connection.dump(&request, read).await {
            Err(error) if error.not_found() => Ok(Vec::new()),
            result => result.map(|parts| parts.concat()),
        }
    }

    /// Does all of `batch` or nothing.
    pub async fn apply(&mut self, batch: &Batch) -> Result<(), KernelError> {
        self.connection.transact(NFNL_SUBSYS_NFTABLES, None, batch.requests()).await
    }

    /// The number of the last change. It is never 0.
    pub async fn generation(&mut self) -> Result<u32, KernelError> {
        let request = request(NFT_MSG_GETGEN, Family(0), &[]);
        self.connection.get(&request, |message| find(message, NFTA_GEN_ID)?.u32_be()).await
    }

    /// As [`apply`](Self::apply), unless anything was changed since [`generation`](Self::generation): then it is refused, with an
    /// error that is [`outdated`](KernelError::outdated).
    pub async fn apply_at(&mut self, generation: u32, batch: &Batch) -> Result<(), KernelError> {
        self.connection.transact(NFNL_SUBSYS_NFTABLES, Some(generation), batch.requests()).await
    }

    /// The socket, for other parts of netfilter.
    pub const fn connection(&mut self) -> &mut Connection {
        &mut self.connection
    }
}

fn request(operation: u16, family: Family, names: &[(u16, &str)]) -> Request {
    let mut body = netfilter_header(family.0, 0).to_vec();
    names.iter().for_each(|(kind, name)| push_text(&mut body, *kind, name));
    Request::new(message_type(operation), 0, &body)
}

fn find<'a>(message: &Message<'a>, kind: u16) -> Option<Attribute<'a>> {
    message.split(HEADER)?.1.into_iter().find(|attribute| attribute.kind == kind)
}

fn read_chain(message: &Message<'_>) -> Option<ChainInfo> {
    let text = |kind| Some(find(message, kind)?.text()?.to_owned());
    let hook = find(message, NFTA_CHAIN_HOOK).and_then(|hook| {
        let get = |kind| hook.nested().find(|inner| inner.kind == kind)?.u32_be();
        let kind = text(NFTA_CHAIN_TYPE).unwrap_or_default();
        let priority = get(NFTA_HOOK_PRIORITY)?.cast_signed();
        Some(Hook { kind, number: get(NFTA_HOOK_HOOKNUM)?, priority })
    });
    Some(ChainInfo {
        family: Family(*message.body.first()?),
        table: text(NFTA_CHAIN_TABLE)?,
        name: text(NFTA_CHAIN_NAME)?,
        hook,
        drops: find(message, NFTA_CHAIN_POLICY).and_then(|policy| policy.u32_be()) == Some(0),
    })
}

/// `wanted` is the table: old kernels list all of them, whatever is asked for.
fn read_rule(message: &Message<'_>, wanted: &str) -> Option<RuleInfo> {
    if find(message, NFTA_RULE_TABLE)?.text()? != wanted {
        return None;
    }
    let handle = find(message, NFTA_RULE_HANDLE)?.value.first_chunk()?;
    let list = find(message, NFTA_RULE_EXPRESSIONS);
    let userdata = |kind| read_userdata(find(message, NFTA_RULE_USERDATA)?.value, kind);
    Some(RuleInfo {
        chain: find(message, NFTA_RULE_CHAIN)?.text()?.to_owned(),
        handle: u64::from_be_bytes(*handle),
        expressions: list.iter().flat_map(Attribute::nested).map(Expression::read).collect(),
        comment: userdata(0),
        tag: userdata(USERDATA_TAG),
    })
}

/// Of data that is kept with a rule, each with type, length and value, the text of this type. The comment has type 0.
fn read_userdata(mut data: &[u8], wanted: u8) -> Option<String> {
    while let [kind, length, rest @ ..] = data {
        let (value, rest) = rest.split_at_checked(usize::from(*length))?;
        if *kind == wanted {
            return Some(str::from_utf8(value).ok()?.trim_end_matches('\0').to_owned());
        }
        data = rest;
    }
    None
}

fn read_element(element: Attribute<'_>) -> SetElement {
    let get = |kind| element.nested().find(|inner| inner.kind == kind);
    let value = |kind| {
        let inner = get(kind)?.nested().find(|inner| inner.kind == NFTA_DATA_VALUE)?;
        Some(inner.value.to_vec())
    };
    let flags = get(NFTA_SET_ELEM_FLAGS).and_then(|flags| flags.u32_be()).unwrap_or_default();
    SetElement {
        key: value(NFTA_SET_ELEM_KEY).filter(|_| flags & NFT_SET_ELEM_CATCHALL == 0),
        key_end: value(NFTA_SET_ELEM_KEY_END),
        ends_range: flags & NFT_SET_ELEM_INTERVAL_END != 0,
        verdict: get(NFTA_SET_ELEM_DATA).and_then(Verdict::read),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_answer_is_read_without_panic(
            kind: u16, body in prop::collection::vec(any::<u8>(), 0..160),
        ) {
            let request = Request::new(kind, 0, &body);
            let message = request.message().unwrap();
            let _ = (read_chain(&message), read_rule(&message, ""), read_userdata(&body, 0));
            if let Some((_, mut attributes)) = message.split(HEADER) {
                let _ = attributes.next().map(read_element);
            }
        }
    }
}
