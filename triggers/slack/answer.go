package slack

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"

	"github.com/sensor-engine/engine/specs"
	"github.com/sensor-engine/engine/triggers"
	"github.com/sensor-engine/engine/triggers/outbound"
)

// answer is what Slack said.
type answer struct {
	code   int
	header http.Header
	body   []byte
	// refused is true when the body says that it was no success; reason is
	// Slack's word for why, "" when it gave none.
	refused bool
	reason  string
	// reply is the body of an answer to a method.
	reply reply
}

// reply is what methods answer.
type reply struct {
	OK       *bool  `json:"ok"`
	Error    string `json:"error"`
	Needed   string `json:"needed"`
	Channel  string `json:"channel"`
	TS       string `json:"ts"`
	Metadata struct {
		Messages []string `json:"messages"`
	} `json:"response_metadata"`
}

// read finds out what the body says. A method tells in JSON, whatever the
// status. A webhook tells by the status, with its reason as plain text; those of
// workflows answer with JSON as methods do.
func (a *answer) read(ofMethod bool) {
	if json.Unmarshal(a.body, &a.reply) == nil && a.reply.OK != nil {
		a.refused, a.reason = !*a.reply.OK, word(a.reply.Error)
		return
	}
	a.reply = reply{}
	a.refused = ofMethod
	a.reason = word(strings.TrimSpace(string(a.body)))
	if a.reason == "ok" {
		a.reason = ""
	}
}

// word is s when it is one of Slack's words for a failure: other text may be
// anything, such as a page of a proxy.
func word(s string) string {
	if len(s) > 64 || strings.Trim(s, "abcdefghijklmnopqrstuvwxyz0123456789_") != "" {
		return ""
	}
	return s
}

// What the words of Slack mean for another call. Those that are not here are
// for good: the message, the channel or the token must change first.
var (
	// passing may be over the next time.
	passing = words("ratelimited rate_limited message_limit_exceeded internal_error fatal_error service_unavailable request_timeout team_added_to_org rollup_error")
	// unfit are faults of the message.
	unfit = words("invalid_payload no_text msg_too_long msg_blocks_too_long invalid_blocks invalid_blocks_format invalid_attachments too_many_attachments attachment_payload_limit_exceeded invalid_arguments invalid_arg_name invalid_json json_not_object user_not_found")
	// threadless say that a thread is not there to be answered.
	threadless = words("thread_not_found message_not_found cannot_reply_to_message invalid_thread_ts")
)

func words(list string) map[string]bool {
	m := map[string]bool{}
	for w := range strings.FieldsSeq(list) {
		m[w] = true
	}
	return m
}

// threadError is a failure because there is no such thread.
type threadError struct{ err error }

func (e *threadError) Error() string { return e.err.Error() }
func (e *threadError) Unwrap() error { return e.err }

// failure returns nil for a success and the right sort of failure for the rest.
func (p *post) failure(a *answer) error {
	ok := a.code >= 200 && a.code < 300
	if ok && !a.refused {
		return nil
	}
	text := p.label + ": answered " + outbound.StatusText(a.code)
	if a.reason != "" {
		text = p.label + ": refused the message: " + a.reason
		if !ok {
			text += " (" + outbound.StatusText(a.code) + ")"
		}
	}
	if m := a.reply.Metadata.Messages; len(m) > 0 {
		text += ": " + outbound.Clip(strings.Join(m, "; "))
	}
	if hint := p.hint(a); hint != "" {
		text += "; " + hint
	}
	switch {
	case a.code == http.StatusTooManyRequests || passing[a.reason]:
		return outbound.Later(triggers.Errorf(triggers.FunctionError, "%s", text), a.header)
	case !ok && outbound.Worthwhile(a.code):
		return outbound.Later(triggers.Errorf(triggers.SystemError, "%s", text), a.header)
	case unfit[a.reason]:
		return triggers.Errorf(triggers.InputError, "%s", text)
	case ok && a.reason == "": // not Slack, or not itself
		return triggers.Errorf(triggers.SystemError, "%s", text)
	case threadless[a.reason]:
		return &threadError{triggers.Permanentf("%s", text)}
	}
	return triggers.Permanentf("%s", text)
}

// hint is what to do about a failure.
func (p *post) hint(a *answer) string {
	webhook := p.cfg.Token == nil
	switch a.reason {
	case "no_service", "no_service_id", "no_team", "no_active_hooks", "invalid_token", "team_disabled":
		if webhook {
			return "the webhook is gone or disabled; make a new one and put its address into " + place(p.cfg.URL)
		}
	case "invalid_auth", "not_authed", "token_revoked", "token_expired", "account_inactive":
		if !webhook {
			return "put a token that is in force into " + place(p.cfg.Token)
		}
	case "channel_not_found":
		if webhook {
			return "the channel of the webhook is gone; make a new webhook and put its address into " + place(p.cfg.URL)
		}
		return "check the name or take the id, and invite the app if the channel is private"
	case "not_in_channel":
		return "invite the app to the channel, or give it the scope chat:write.public"
	case "is_archived", "channel_is_archived":
		return "post to a channel that is not archived"
	case "action_prohibited", "restricted_action", "posting_to_general_channel_denied", "restricted_action_read_only_channel":
		return "a rule of the workspace forbids it"
	case "missing_scope":
		scope := "that the method needs"
		if n := outbound.Clip(a.reply.Needed); n != "" {
			scope = n
		}
		return "give the app the scope " + scope + " and install it again"
	case "invalid_blocks", "invalid_blocks_format":
		return "try the blocks in the Block Kit Builder of Slack"
	case "no_text":
		return "give message beside blocks or attachments"
	case "":
		switch {
		case a.code >= 300 && a.code < 400:
			return "redirects are not followed; this is not the address of a webhook or of the methods of Slack"
		case a.code < 300:
			return "this is no answer of Slack; check api"
		}
	}
	if threadless[a.reason] {
		return "check thread.ts"
	}
	return ""
}

// place says where a secret is.
func place(ref *specs.SecretRef) string { return fmt.Sprintf("key %s of Secret %s", ref.Key, ref.Name) }

// noThread reports whether err says that there is no such thread.
func noThread(err error) bool {
	_, ok := errors.AsType[*threadError](err)
	return ok
}
