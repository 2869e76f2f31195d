"""Detection: from predictions to boxes, from labels to losses, and how it is trained and judged."""
