package triggertest

import (
	"fmt"
	"strings"
)

// Property is something that every kind promises of its calls.
type Property string

// The properties, in the order of the table.
const (
	Deadline     Property = "deadline"
	Cancellation Property = "cancellation"
	Permanently  Property = "permanent failure"
	Retryably    Property = "retryable failure"
	SameKey      Property = "same key twice"
	HugeInput    Property = "huge input"
	HugeOutput   Property = "huge output"
	InvalidText  Property = "invalid UTF-8"
	Crashes      Property = "crash at each step"
)

// Promise is what a property means.
type Promise struct {
	Property Property
	// Says is what [Run] checks, a sentence for the page about functions.
	Says string
}

// Promises are all there are.
func Promises() []Promise {
	return []Promise{
		{Deadline, "A call ends when its time is over, and may be repeated."},
		{Cancellation, "So does one that is given up, before it began or while it runs."},
		{Permanently, "What no repetition can cure is told apart from what may pass."},
		{Retryably, "What may pass may be repeated."},
		{SameKey, "The callee gets the key of the call: the same for a repetition, another for another call."},
		{HugeInput, "20 MiB arrive whole; where the callee or the protocol has a limit, more than that is refused for good."},
		{HugeOutput, "Of an answer of 64 MiB (4 MiB with `nats`) at most 1 MiB is kept, or the call fails; the next one works."},
		{InvalidText, "Bytes that are no text are passed on or replaced, or refused for good; never repeated in vain."},
		{Crashes, "Whoever works on the call ends at each step of it: that call alone is hurt, it may be repeated, and the next one works."},
	}
}

// Row is a kind, or one of its modes, and what shows each property: "yes" where
// the suite calls it, otherwise the reason why it cannot apply.
type Row struct {
	Kind  string
	Cells map[Property]string
}

// Yes says that the suite has calls for a property, Workers that it is
// [RunWorker] that makes them.
const (
	Yes     = "yes"
	Workers = "yes, by its workers"
)

// Matrix is what is checked of which kind.
func Matrix() []Row {
	row := func(kind string, except map[Property]string) Row {
		r := Row{kind, map[Property]string{}}
		for _, p := range Promises() {
			r.Cells[p.Property] = Yes
			if text, ok := except[p.Property]; ok {
				r.Cells[p.Property] = text
			}
		}
		return r
	}
	workers := map[Property]string{HugeInput: Workers, HugeOutput: Workers, InvalidText: Workers, Crashes: Workers}
	const local = "nothing is waited for"
	return []Row{
		row("python", workers),
		row("node", workers),
		row("exec", nil),
		row("exec, worker", workers),
		row("wasm", nil),
		row("wasm, worker", nil),
		row("http", nil),
		row("grpc", nil),
		row("nats", nil),
		row("slack, webhook", map[Property]string{SameKey: "Slack knows no keys", HugeInput: "Slack bounds a message"}),
		row("slack, token", map[Property]string{
			Deadline: "as a webhook", SameKey: "Slack knows no keys", HugeInput: "Slack bounds a message", HugeOutput: "as a webhook",
		}),
		row("email", map[Property]string{HugeOutput: "the protocol bounds an answer"}),
		row("publish", map[Property]string{
			HugeOutput: "it answers with the id", Crashes: "the engine is the callee",
		}),
		row("log", map[Property]string{
			Deadline: local, Retryably: "nothing can pass", SameKey: "a second line does no harm", HugeInput: "a message is cut",
			Crashes: "the engine is the callee",
		}),
	}
}

// rowOf is the row of a kind, or of a mode of it.
func rowOf(kind, mode string) (Row, error) {
	name := kind
	if mode != "" {
		name += ", " + mode
	}
	for _, r := range Matrix() {
		if r.Kind == name {
			return r, nil
		}
	}
	return Row{}, fmt.Errorf("triggertest.Matrix has no row for %s", name)
}

// Where a callee may end, in the order of a call.
const (
	BeforeReading = "before it reads"
	WhileReading  = "while it reads"
	AfterReading  = "after it has read"
	WhileWriting  = "while it answers"
	AfterWriting  = "after its answer"
	BetweenCalls  = "between two calls"
)

// Steps are the steps of a call in their order, and what their crash means for
// it, as the page about functions says it. A worker is a process that waits for
// calls, a program is one that is started for each, a server is behind a
// network.
func Steps() []Step {
	const again, lost = "another worker takes it", "`SystemError`"
	return []Step{
		{BeforeReading, again, "fails, repeated", "fails, repeated"},
		{WhileReading, again, "fails, repeated", "fails, repeated"},
		{AfterReading, lost + ", repeated", "fails, repeated", "fails, repeated"},
		{WhileWriting, lost + ", repeated", "fails, repeated", "fails, repeated"},
		{AfterWriting, "succeeds", "fails, repeated", "succeeds"},
		{BetweenCalls, "is not noticed", "there is none", "is not noticed, or the next one fails and is repeated"},
	}
}

// Step is a row of [Steps].
type Step struct{ Name, Worker, Program, Server string }

// Table is the promises and, of [Matrix], the kinds they do not apply to, in
// Markdown.
func Table() string {
	var b strings.Builder
	b.WriteString("\n| | what is checked | not of |\n|---|---|---|\n")
	for _, p := range Promises() {
		var not []string
		for _, r := range Matrix() {
			if cell := r.Cells[p.Property]; cell != Yes && cell != Workers {
				not = append(not, "`"+strings.Replace(r.Kind, ", ", "` (", 1))
				if strings.Contains(r.Kind, ", ") {
					not[len(not)-1] += ")"
				} else {
					not[len(not)-1] += "`"
				}
				not[len(not)-1] += ": " + cell
			}
		}
		fmt.Fprintf(&b, "| %s | %s | %s |\n", p.Property, p.Says, strings.Join(not, "; "))
	}
	return b.String() + "\n"
}

// StepTable is [Steps] in Markdown.
func StepTable() string {
	var b strings.Builder
	b.WriteString("\n| it ends | worker | program, module | server |\n|---|---|---|---|\n")
	for _, s := range Steps() {
		fmt.Fprintf(&b, "| %s | %s | %s | %s |\n", s.Name, s.Worker, s.Program, s.Server)
	}
	return b.String() + "\n"
}
