// Package e2e tests the built engine from outside, as its users meet it: a
// binary, spec files, HTTP in and HTTP out, signals and the file system. Each
// test stands for a promise of the design. It must not import the engine.
package e2e
