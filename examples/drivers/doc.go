// Package drivers is the example of event drivers: specs, a driver in Go and
// one in Python, and the tests that run them with a real engine. Nothing
// imports it, and its programs know nothing of the engine but what docs/drivers.md
// promises them.
package drivers
