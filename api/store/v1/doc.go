// Package storev1 is the records of the store and the Publish service, generated from store.proto. The comment on each
// message there says under which key it lies and who writes it.
package storev1
