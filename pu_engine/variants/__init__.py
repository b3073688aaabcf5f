"""A student as files for devices, and what each of them gives beside fp32."""
