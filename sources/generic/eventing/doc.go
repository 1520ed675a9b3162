// Package eventing is the wire contract of the generic event source,
// generic.proto, as Go code: the client that the engine uses and the service
// that a server of events implements. It must not know the engine; servers
// outside this module may import it.
package eventing
