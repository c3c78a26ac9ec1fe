// Package contract holds the tests that no single part can own: which part may
// import which, and what any cluster, in one process or in many, owes to its
// clients. It has no code of its own.
package contract
