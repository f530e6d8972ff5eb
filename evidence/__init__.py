"""Tables of papers, benchmarks and the pages made from them: not part of the package that users install."""
