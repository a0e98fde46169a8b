"""What computing a form costs: the operators that compute it, and what each of them costs."""
