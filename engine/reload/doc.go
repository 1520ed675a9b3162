// Package reload owns the way from what the spec files say to what shall run.
//
// Its pure half decides: a [Reconciler] compares one read of the files with
// the last good resources and says which set is desired, why a resource is
// stale, when to look again, and which problems are new; [Diff] says what
// changes between two sets. It has no clock and does no I/O: time and files
// are arguments. Its other half, the [Watcher], notices that files changed.
//
// The package neither reads specs nor starts anything. The engine does, in one
// loop: on a change load, [Reconciler.Next], apply the plan,
// [Reconciler.Accept], store [Reconciler.Encode].
package reload
