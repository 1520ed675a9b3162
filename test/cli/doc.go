// Package cli runs the command line as people do, from scripts: each *.txtar
// file is one, with the files it needs. It builds the binary once and must not
// import anything of the engine.
package cli
