"""What people look at: contact sheets, cut-outs, and self-contained pages of the audit and of a trained experiment."""
