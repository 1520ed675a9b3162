// Package trigger is the wire contract of servers that triggers call,
// trigger.proto, as Go code: the client that the engine uses and the service
// that a server implements. It must not know the engine; servers outside this
// module may import it.
package trigger
