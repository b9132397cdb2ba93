//! What a recovery concludes.

use handoff::proto::record::Standing;
use handoff::proto::recovery::{Answer, Facts, Who, conclude};

use crate::plain;

pub(crate) fn table() -> String {
    let mut text = String::from(
        "| answers on the control path | lock | record | conclusion |\n| --- | --- | --- | --- |\n",
    );
    let answers = [Who::Incumbent, Who::Successor, Who::Other]
        .into_iter()
        .flat_map(|who| [false, true].map(|busy| Some(Answer { who, busy })))
        .chain([None]);
    for answer in answers {
        for locked in [true, false] {
            for record in [Some(Standing::Trial), Some(Standing::Final), None] {
                let conclusion = plain(&conclude(&Facts { answer, locked, record }));
                let row = (locked, record.map_or("none".to_owned(), |record| plain(&record).to_lowercase()));
                let lock = if row.0 { "held" } else { "free" };
                text += &format!("| {} | {lock} | {} | `{conclusion}` |\n", name(answer), row.1);
            }
        }
    }
    text
}

fn name(answer: Option<Answer>) -> String {
    answer.map_or("nobody".to_owned(), |answer| {
        let busy = if answer.busy { ", busy" } else { "" };
        format!("{}{busy}", plain(&answer.who).to_lowercase())
    })
}
